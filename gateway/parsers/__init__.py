"""What a model's text says beside its content: reasoning and tool calls, found while the text comes in pieces.

How the text is cut into pieces makes no difference: every parser goes by the character, and what it gives, joined, is
the same for every cut.
"""
