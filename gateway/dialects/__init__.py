"""Other ways to ask for a generation than OpenAI's chat and text completions.

Each turns its request into the body of one of those two, so that everything behind it is the same, and shapes the
answer in its own way.
"""
