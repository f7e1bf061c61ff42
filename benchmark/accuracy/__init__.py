"""What a model answers through a server: published questions, and the same tokens as `transformers`.

questions   MMLU and GSM8K: rows of the datasets as prompts
answers     what an answer says: a letter, a number
scores      how many are right, and how sure that is
asking      all questions put to a server
texts       the prompts of the parity check
parity      greedy tokens and log-likelihoods beside those of `transformers`
"""
