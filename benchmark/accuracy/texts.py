"""Twenty beginnings of texts: prose, lists, code, numbers, and scripts other than Latin."""

TEXTS = (
    "The capital of France is",
    "Once upon a time, in a small village by the sea, there lived an old fisherman who",
    "To make a good cup of tea, first",
    "The three laws of thermodynamics are:\n1.",
    "def fibonacci(n):\n    ",
    "SELECT name, age FROM users WHERE",
    "Dear Sir or Madam,\n\nI am writing to",
    "Q: What is 12 times 12?\nA:",
    "1, 1, 2, 3, 5, 8, 13,",
    "The quick brown fox jumps over the lazy dog. The lazy dog",
    "Roses are red,\nViolets are blue,\n",
    "In 1969, the Apollo 11 mission",
    "import numpy as np\n\nx = np.linspace(0, 1, 100)\n",
    "Photosynthesis is the process by which",
    "<html>\n<head>\n<title>",
    "La capitale de l'Allemagne est",
    "Das Wetter ist heute schön, deshalb",
    "日本の首都は",
    "The emoji 😀 means happy, and 😢 means",
    "She said: “I don't know whether it will rain tomorrow, but",
)
