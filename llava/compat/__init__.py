"""Names that code written for the original LLaVA imports, with the original's signatures.

Nothing else needs them. Modules at the original's paths import them, a line for each. All are written in
terms of this package's own modules; `llava/README.md` lists them.

Source of all signatures and results: LLaVA v1.2.2 and the releases after it (c121f04).
"""
