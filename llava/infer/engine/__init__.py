"""Answer requests with one model, reading images and shared prompts once.

The terms, from small to large:

- A *request* is one prompt for the model with its images (`requests`). It gets one *reply*.
- A *prefix* is the beginning that several prompts share, images included: the same image and the same words
  before the questions differ. Requests that share a prefix form a *group* (`schedule`).
- A *pass* is one forward pass of the language model. Prefixes are read first, then the *rest* of each prompt,
  and then each pass adds one token to every unfinished answer (`packed`, `attention`).
- A *slot* is a group's place in the cache of keys and values (`kv_cache`). A `budget` limits how many
  positions go into a pass and into the cache.
- A *window* is a few groups whose images are read at the same time. While one window is being answered, the
  images of the next are decoded (`image_loading`) and its prompts encoded (`prompt_ids`). The schedule is a
  list of windows.

README.md has a drawing.

`engine` runs the schedule. Requests that are sampled or beam-searched go through transformers' `generate` one
at a time (`generate`), as do greedy ones with batch size 1 (`greedy`). A greedy answer that rounding in the
batch could have changed (`rounding`) is computed again on its own.
"""
