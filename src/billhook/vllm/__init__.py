"""vLLM source trees: their releases as data, and the kernel sources that they build."""
