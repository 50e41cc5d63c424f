"""How much of what comes from elsewhere is read."""

# Characters of a prompt, about 10 000 words; text encoders read some hundred.
MOST_PROMPT_CHARACTERS = 50_000
# Objects of a prompt.
MOST_PROMPT_OBJECTS = 20_000
# Relations of a prompt: "twenty cats left of twenty dogs" has 400.
MOST_PROMPT_RELATIONS = 100_000
