"""Answer requests in vLLM, with the engine's answers; README.md says how."""
