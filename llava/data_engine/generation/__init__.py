"""Send a round's requests to a chat server: each answer is paid for once, and never more than the budget.

`bodies` makes what is sent, `client` sends it, `ledger` remembers what came back and what it cost, `prices`
says what it will cost; `generate` joins them, and `batch_files` does the same by files instead of calls.
"""
