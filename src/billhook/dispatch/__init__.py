"""From a problem to a running kernel: where kernels come from, loading, workspaces, launches. No torch."""
