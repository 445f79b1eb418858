"""The data engine's records and how they become training data. Text only: no torch, no images opened.

`records` reads what an engine wrote, `formats` asks it in several ways, `convert` makes samples of it, `mix`
puts them behind a base; `pipeline` and `python -m llava.data_engine` join these steps.
"""
