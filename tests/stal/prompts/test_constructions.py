"""Constructions of English prompts, at least two sentences each."""

import pytest

from stal.prompts import parse
from stal.relations import NOWHERE

# construction -> sentences: text, phrases in order, relations with indices into them.
CASES: dict[str, list[tuple[str, list[str], list[str]]]] = {
    "what somebody does": [
        ("a chef slicing vegetables", ["a chef", "vegetables"], []),
        (
            "a child reading a book on a rug",
            ["a child", "a book", "a rug"],
            ["1 held by 0", "0 on 2"],
        ),
        ("a bus crossing a bridge", ["a bus", "a bridge"], ["0 on 1"]),
        ("a horse going across a river", ["a horse", "a river"], ["0 on 1"]),
        (
            "a bowl with chopsticks resting on it",
            ["a bowl", "chopsticks"],
            ["1 on 0"],
        ),
        (
            "a woman holding a baby, a stroller next to her",
            ["a woman", "a baby", "a stroller"],
            ["1 held by 0", "2 next to 1"],
        ),
    ],
    "no things": [
        ("a cozy cabin at sunset, a storm over the sea", ["a cozy cabin"], []),
        ("an astronaut on Mars", ["an astronaut"], []),
    ],
    "attributes": [
        (
            "a red and white striped cat next to a blue dog",
            ["a red and white striped cat", "a blue dog"],
            ["0 next to 1"],
        ),
        (
            "The plump, juicy grapes lay beside a small wooden bowl.",
            ["plump, juicy grapes", "a small wooden bowl"],
            ["0 next to 1"],
        ),
        ("a broken down car and a shiny truck", ["a broken down car", "a shiny truck"], []),
        ("a yellow daisy and a purple violet", ["a yellow daisy", "a purple violet"], []),
    ],
    "nouns of several words": [
        (
            "a hot dog left of a cell phone, and a fire hydrant",
            ["a hot dog", "a cell phone", "a fire hydrant"],
            ["0 left of 1"],
        ),
        (
            "two teddy bears under a hair drier",
            ["a teddy bear", "a teddy bear", "a hair drier"],
            ["0 below 2", "1 below 2"],
        ),
    ],
    "numerals": [
        ("two dogs and one cat", ["a dog", "a dog", "a cat"], []),
        ("a star and two blue crosses", ["a star", "a blue cross", "a blue cross"], []),
        ("a group of three birds", ["a bird", "a bird", "a bird"], []),
        ("This is 2 cows eating hay.", ["a cow", "a cow", "a hay"], []),
    ],
    "members of a plural": [
        (
            "two dogs, one on a chair and the other under a table",
            ["a dog", "a dog", "a chair", "a table"],
            ["0 on 2", "1 below 3"],
        ),
        ("two cups, one above the other", ["a cup", "a cup"], ["0 above 1"]),
        ("Two cups. One is red and the other is blue.", ["a red cup", "a blue cup"], []),
        (
            "Three kites, one red, one blue and one large",
            ["a red kite", "a blue kite", "a large kite"],
            [],
        ),
    ],
    "pronouns after a list": [
        ("a cat, a dog behind it", ["a cat", "a dog"], ["1 behind 0"]),
        ("a man and a dog behind him", ["a man", "a dog"], ["1 behind 0"]),
        (
            "two boats on a lake, a plane above them",
            ["a boat", "a boat", "a plane"],
            ["2 above 0", "2 above 1"],
        ),
        (
            "three cars in a row, a bus behind them",
            ["a car", "a car", "a car", "a bus"],
            ["0 left of 1", "1 left of 2", "3 behind 0", "3 behind 1", "3 behind 2"],
        ),
        (
            "two chairs and a table between them",
            ["a chair", "a chair", "a table"],
            ["2 between 0", "2 between 1"],
        ),
        (
            "a bench, a tree on its left and a lamp on its right",
            ["a bench", "a tree", "a lamp"],
            ["1 left of 0", "2 right of 0"],
        ),
        (
            "a table and a chair, and behind them is a cat",
            ["a table", "a chair", "a cat"],
            ["2 behind 0", "2 behind 1"],
        ),
        (
            "There is a table. A cat and a dog next to it.",
            ["a table", "a cat", "a dog"],
            ["1 next to 0", "2 next to 0"],
        ),
    ],
    "coordination": [
        ("a cat, a dog and a bird", ["a cat", "a dog", "a bird"], []),
        (
            "A cat and a dog lay next to a sofa and a chair.",
            ["a cat", "a dog", "a sofa", "a chair"],
            ["0 next to 2", "1 next to 2", "0 next to 3", "1 next to 3"],
        ),
        (
            "A truck is parked outside a building and has a boat on top of it.",
            ["a truck", "a building", "a boat"],
            ["0 outside 1", "2 above 0"],
        ),
    ],
    "inverted order": [
        ("To the left of the dog is a cat.", ["a dog", "a cat"], ["1 left of 0"]),
        ("A table. Beneath it lies a dog.", ["a table", "a dog"], ["1 below 0"]),
        (
            "Above the ball is a kite, and a bee is below it.",
            ["a ball", "a kite", "a bee"],
            ["1 above 0", "2 below 0"],
        ),
        (
            "A cow stands in a field. To its right, a sheep, and to its left, a horse.",
            ["a cow", "a sheep", "a horse"],
            ["1 right of 0", "2 left of 0"],
        ),
        (
            "Above the sink, there is a cup, and beneath the sink, there is a cat.",
            ["a sink", "a cup", "a cat"],
            ["1 above 0", "2 below 0"],
        ),
        (
            "The cup is below a shelf, and to the shelf's right is a lamp.",
            ["a cup", "a shelf", "a lamp"],
            ["0 below 1", "2 right of 1"],
        ),
        ("a sink, below a mirror, a towel", ["a sink", "a mirror", "a towel"], ["0 below 1"]),
    ],
    "relative clauses": [
        (
            "The dog is left of the cat, which is below the person.",
            ["a dog", "a cat", "a person"],
            ["0 left of 1", "1 below 2"],
        ),
        (
            "a table with a vase to its left and the scissors to the right",
            ["a table", "a vase", "scissors"],
            ["1 left of 0", "2 right of 0"],
        ),
        (
            "A zebra that stands behind a fence is right of a giraffe.",
            ["a zebra", "a fence", "a giraffe"],
            ["0 behind 1", "0 right of 2"],
        ),
    ],
    "phrases that only describe": [
        (
            "a girl with ribbons next to a clock",
            ["a girl", "ribbons", "a clock"],
            ["1 worn by 0", "0 next to 2"],
        ),
        (
            "a dog wearing a red shirt on top of a bed",
            ["a dog", "a red shirt", "a bed"],
            ["1 worn by 0", "0 above 2"],
        ),
        (
            "a mouse on a desk next to a cup",
            ["a mouse", "a desk", "a cup"],
            ["0 on 1", "0 next to 2"],
        ),
    ],
    "pronouns": [
        (
            "A cat sits on a mat. It is next to a ball.",
            ["a cat", "a mat", "a ball"],
            ["0 on 1", "0 next to 2"],
        ),
        (
            "Two cats sit on a sofa. They are left of a lamp.",
            ["a cat", "a cat", "a sofa", "a lamp"],
            ["0 on 2", "1 on 2", "0 left of 3", "1 left of 3"],
        ),
        ("A man waits. To his right is a bus.", ["a man", "a bus"], ["1 right of 0"]),
        (
            "There are two chairs with a lamp above them.",
            ["a chair", "a chair", "a lamp"],
            ["2 above 0", "2 above 1"],
        ),
        (
            "The woman's dog lies at her feet.",
            ["a woman", "a dog"],
            ["1 below 0"],
        ),
        (
            "A man holds a ball in one hand and a bat in the other, with a dog right of both.",
            ["a man", "a ball", "a bat", "a dog"],
            ["1 held by 0", "2 held by 0", "3 right of 1", "3 right of 2"],
        ),
    ],
    "repeated mentions": [
        ("A cat is on a mat. The cat is red.", ["a red cat", "a mat"], ["0 on 1"]),
        (
            "A giraffe and a bird. The bird also sits above the giraffe.",
            ["a giraffe", "a bird"],
            ["1 above 0"],
        ),
        (
            "a tennis racket, and the racket is under a chair",
            ["a tennis racket", "a chair"],
            ["0 below 1"],
        ),
    ],
    "lists": [
        (
            "a dog next to a hat, book and blanket",
            ["a dog", "a hat", "a book", "a blanket"],
            ["0 next to 1", "0 next to 2", "0 next to 3"],
        ),
        (
            "a bowl filled with corn and fruit next to a cup",
            ["a bowl", "a corn", "a fruit", "a cup"],
            ["1 inside 0", "2 inside 0", "0 next to 3"],
        ),
    ],
    "lists that one statement is about": [
        (
            "a counter with a plate, a knife and a cutting board on it",
            ["a counter", "a plate", "a knife", "a cutting board"],
            ["1 on 0", "2 on 0", "3 on 0"],
        ),
        (
            "a star with a ring above it and a cross below it",
            ["a star", "a ring", "a cross"],
            ["1 above 0", "2 below 0"],
        ),
        ("a lamp and a cup on a shelf", ["a lamp", "a cup", "a shelf"], ["0 on 2", "1 on 2"]),
        (
            "a horse, a cow and a sheep behind a fence",
            ["a horse", "a cow", "a sheep", "a fence"],
            ["0 behind 3", "1 behind 3", "2 behind 3"],
        ),
        (
            "a laptop on a desk, a cup to its right, a cat under the desk",
            ["a laptop", "a desk", "a cup", "a cat"],
            ["0 on 1", "2 right of 0", "3 below 1"],
        ),
        (
            "a bathroom with a sink and a towel on a door",
            ["a sink", "a towel", "a door"],
            ["1 on 2"],
        ),
        (
            "a cat on a chair and a dog on a rug",
            ["a cat", "a chair", "a dog", "a rug"],
            ["0 on 1", "2 on 3"],
        ),
    ],
    "verbs after a clause": [
        (
            "A man on a horse looks at a car.",
            ["a man", "a horse", "a car"],
            ["0 on 1", "0 facing 2"],
        ),
        (
            "a bus with a man wearing a hat",
            ["a bus", "a man", "a hat"],
            ["2 worn by 1"],
        ),
        (
            "A young girl dressed in pink sitting on a chair",
            ["a young girl", "a chair"],
            ["0 on 1"],
        ),
    ],
    "two of one noun": [
        ("a red ball above a blue ball", ["a red ball", "a blue ball"], ["0 above 1"]),
        ("one dog is left of the other dog", ["a dog", "a dog"], ["0 left of 1"]),
        ("a microwave behind a microwave", ["a microwave", "a microwave"], ["0 behind 1"]),
    ],
    "a part stands for its whole": [
        ("a cat on the hood of a red car", ["a cat", "a red car"], ["0 on 1"]),
        ("a bird on top of a car mirror", ["a bird", "a car mirror"], ["0 above 1"]),
        ("A dog has its head on a pillow.", ["a dog", "a pillow"], ["0 on 1"]),
        ("a pan on a stove top", ["a pan", "a stove top"], ["0 on 1"]),
    ],
    "next to, near, each other": [
        ("a cat and a dog next to each other", ["a cat", "a dog"], ["0 next to 1"]),
        ("a horse near a barn", ["a horse", "a barn"], ["0 next to 1"]),
    ],
    "between": [
        (
            "a cat and a dog with a ball between them",
            ["a cat", "a dog", "a ball"],
            ["2 between 0", "2 between 1"],
        ),
        (
            "A ball lies between a cat and a dog.",
            ["a ball", "a cat", "a dog"],
            ["0 between 1", "0 between 2"],
        ),
        (
            "A clock hangs over a bed, flanked by two lamps.",
            ["a clock", "a bed", "a lamp", "a lamp"],
            ["0 above 1", "0 between 2", "0 between 3"],
        ),
        (
            "A cup and a plate are on a table, and a fork lies between them.",
            ["a cup", "a plate", "a table", "a fork"],
            ["0 on 2", "1 on 2", "3 between 0", "3 between 1"],
        ),
    ],
    "surrounded": [
        ("a dog surrounded by two cats", ["a dog", "a cat", "a cat"], ["1 around 0", "2 around 0"]),
        ("chairs around a table", ["chairs", "a table"], ["0 around 1"]),
        (
            "Men sit on benches around a table.",
            ["men", "benches", "a table"],
            ["0 on 1", "1 around 2"],
        ),
    ],
    "rows": [
        ("three dogs in a row", ["a dog", "a dog", "a dog"], ["0 left of 1", "1 left of 2"]),
        (
            "A cup, a fork and a spoon stand in a row on a table.",
            ["a cup", "a fork", "a spoon", "a table"],
            ["0 left of 1", "1 left of 2", "0 on 3", "1 on 3", "2 on 3"],
        ),
        (
            "an apple and a pear in a row on a table",
            ["an apple", "a pear", "a table"],
            ["0 left of 1", "0 on 2", "1 on 2"],
        ),
        (
            "A drum, a flute and a harp are in a line, with the flute to the right of the harp.",
            ["a drum", "a flute", "a harp"],
            ["0 left of 1", "1 right of 2"],
        ),
    ],
    "containment": [
        ("a ball inside a box", ["a ball", "a box"], ["0 inside 1"]),
        (
            "a cat in a bowl on a table",
            ["a cat", "a bowl", "a table"],
            ["0 inside 1", "1 on 2"],
        ),
        ("a bowl full of apples", ["a bowl", "apples"], ["1 inside 0"]),
    ],
    "support": [
        ("a bird perched atop a fence", ["a bird", "a fence"], ["0 above 1"]),
        ("a lamp on a desk", ["a lamp", "a desk"], ["0 on 1"]),
        (
            "a lamp on top of a table and a cat under it",
            ["a lamp", "a table", "a cat"],
            ["0 above 1", "2 below 1"],
        ),
        ("an astronaut riding a horse", ["an astronaut", "a horse"], ["0 on 1"]),
    ],
    "depth": [
        (
            "a dog behind a tree in front of a house",
            ["a dog", "a tree", "a house"],
            ["0 behind 1", "1 in front of 2"],
        ),
        ("a cat hidden by a box", ["a cat", "a box"], ["0 behind 1"]),
        ("a car with a man behind it", ["a car", "a man"], ["1 behind 0"]),
    ],
    "negations": [
        ("a dog and no cat", ["a dog"], []),
        ("a man without a hat or a coat next to a horse", ["a man", "a horse"], ["0 next to 1"]),
        ("a man without a hat and a woman with a dog", ["a man", "a woman", "a dog"], []),
        ("not a dog but a cat", ["a cat"], []),
        (
            "The cat is not on the chair, it is under the table.",
            ["a cat", "a chair", "a table"],
            ["0 below 2"],
        ),
        ("The cat isn't above the dog.", ["a cat", "a dog"], []),
    ],
    "people holding and wearing": [
        (
            "A woman holding an umbrella and a bag",
            ["a woman", "an umbrella", "a bag"],
            ["1 held by 0", "2 held by 0"],
        ),
        (
            "A girl in a blue dress carries a bear in her arms.",
            ["a girl", "a blue dress", "a bear"],
            ["1 worn by 0", "2 held by 0"],
        ),
        ("A man with a hat on his head", ["a man", "a hat"], ["1 on 0"]),
        (
            "A man wearing a hat rides a horse.",
            ["a man", "a hat", "a horse"],
            ["1 worn by 0", "0 on 2"],
        ),
    ],
    "riders and holders go where their mount or cup does": [
        (
            "a woman riding a horse in front of a house",
            ["a woman", "a horse", "a house"],
            ["0 on 1", "0 in front of 2", "1 in front of 2"],
        ),
        (
            "A boy is holding a kite next to a tree.",
            ["a boy", "a kite", "a tree"],
            ["1 held by 0", "0 next to 2", "1 next to 2"],
        ),
        (
            "a man holding a kite above a dog",
            ["a man", "a kite", "a dog"],
            ["1 held by 0", "1 above 2"],
        ),
    ],
    "a hand's side is no side of the picture": [
        ("A girl holds a kite in her right hand.", ["a girl", "a kite"], ["1 held by 0"]),
        (
            "a woman with a cup in her left hand and a phone in her right",
            ["a woman", "a cup", "a phone"],
            ["1 held by 0", "2 held by 0"],
        ),
        (
            "a man with a fork in one hand and a knife in the other",
            ["a man", "a fork", "a knife"],
            ["1 held by 0", "2 held by 0"],
        ),
        (
            "A cook holding a knife in her right hand and a pan in her left stands behind a desk.",
            ["a cook", "a knife", "a pan", "a desk"],
            ["1 held by 0", "2 held by 0", "0 behind 3"],
        ),
        ("A cat to her right", ["a cat"], []),
    ],
    "what hangs over a shoulder is held, what sits there is on top": [
        (
            "The hiker walked, a green bag slung over his left shoulder.",
            ["a hiker", "a green bag"],
            ["1 held by 0"],
        ),
        ("A boy has a parrot on his right shoulder.", ["a boy", "a parrot"], ["1 on 0"]),
        ("A parrot sits on his shoulder.", ["a parrot"], []),
    ],
    "what comes with a container is in it": [
        (
            "a table with a vase with flowers",
            ["a table", "a vase", "flowers"],
            ["1 on 0", "2 inside 1"],
        ),
        (
            "a vase with flowers next to a clock",
            ["a vase", "flowers", "a clock"],
            ["1 inside 0", "0 next to 2"],
        ),
        ("a basket with apples and a dog", ["a basket", "apples", "a dog"], ["1 inside 0"]),
        ("a bowl with bananas inside", ["a bowl", "bananas"], ["1 inside 0"]),
        (
            "A jar holds a spoon and a fork.",
            ["a jar", "a spoon", "a fork"],
            ["1 inside 0", "2 inside 0"],
        ),
        ("a cup with a handle", ["a cup with a handle"], []),
        ("two vases with a rose", ["a vase", "a vase", "a rose"], []),
    ],
    "what comes with a table is on it": [
        (
            "a desk with a laptop, a lamp and a book",
            ["a desk", "a laptop", "a lamp", "a book"],
            ["1 on 0", "2 on 0", "3 on 0"],
        ),
        (
            "a shelf with a bowl with apples and oranges and a bottle",
            ["a shelf", "a bowl", "apples", "oranges", "a bottle"],
            ["1 on 0", "2 inside 1", "3 inside 1", "4 on 0"],
        ),
        ("The table has a lamp.", ["a table", "a lamp"], ["1 on 0"]),
        (
            "a cup next to a plate holding a cake",
            ["a cup", "a plate", "a cake"],
            ["0 next to 1", "2 on 1"],
        ),
        ("a table with two chairs", ["a table", "a chair", "a chair"], []),
        ("a table with a vase in the middle", ["a table", "a vase"], ["1 on 0"]),
    ],
    "words of place say more than what a thing comes with": [
        ("a table with a lamp above it", ["a table", "a lamp"], ["1 above 0"]),
        ("a desk with a dog under it", ["a desk", "a dog"], ["1 below 0"]),
        ("a bowl with a spoon next to it", ["a bowl", "a spoon"], ["1 next to 0"]),
        (
            "a dog in a cage with a cat next to it",
            ["a dog", "a cage", "a cat"],
            ["0 inside 1", "2 next to 0"],
        ),
        (
            "a desk with a lamp next to a window",
            ["a desk", "a lamp", "a window"],
            ["1 on 0", "1 next to 2"],
        ),
    ],
    "covered and topped": [
        ("a cake topped with strawberries", ["a cake", "strawberries"], ["1 on 0"]),
        ("A table covered with books.", ["a table", "books"], ["1 on 0"]),
    ],
    "background and foreground": [
        ("a girl with trees in the background", ["a girl", "trees"], ["1 behind 0"]),
        (
            "A man rides a horse, with mountains in the distance.",
            ["a man", "a horse", "mountains"],
            ["0 on 1", "2 behind 0"],
        ),
        ("A cat sits. In the background is a window.", ["a cat", "a window"], ["1 behind 0"]),
        (
            "a dog in the foreground, a cat in the background",
            ["a dog", "a cat"],
            ["1 behind 0"],
        ),
        (
            "two bears with trees in the foreground",
            ["a bear", "a bear", "trees"],
            ["2 in front of 0", "2 in front of 1"],
        ),
        ("a pizza on a plate, with grass in the background", ["a pizza", "a plate"], ["0 on 1"]),
    ],
    "participles that share a subject": [
        (
            "a man wearing a hat and holding an umbrella",
            ["a man", "a hat", "an umbrella"],
            ["1 worn by 0", "2 held by 0"],
        ),
        (
            "A boy carries a bag, wearing a red cap.",
            ["a boy", "a bag", "a red cap"],
            ["1 held by 0", "2 worn by 0"],
        ),
    ],
    "the other side": [
        (
            "A horse is on the left side of a bench while a dog is on the right side.",
            ["a horse", "a bench", "a dog"],
            ["0 left of 1", "2 right of 1"],
        ),
        (
            "A cup is to the right of a plate, and a fork is to the left.",
            ["a cup", "a plate", "a fork"],
            ["0 right of 1", "2 left of 1"],
        ),
    ],
    "whose side": [
        (
            "A lamp is at the left of a bed, while a chair is on the bed's right.",
            ["a lamp", "a bed", "a chair"],
            ["0 left of 1", "2 right of 1"],
        ),
        (
            "The bat was resting on the person's right side.",
            ["a bat", "a person"],
            ["0 right of 1"],
        ),
        ("a sheep left to a cow", ["a sheep", "a cow"], ["0 left of 1"]),
    ],
    "who acts: what is alive, what comes with it, or both": [
        (
            "A person with a bag standing beside a bus.",
            ["a person", "a bag", "a bus"],
            ["0 next to 2"],
        ),
        ("a bike with a man standing beside it", ["a bike", "a man"], ["1 next to 0"]),
        ("a house with dog sitting below it", ["a house", "a dog"], ["1 below 0"]),
        (
            "A dog jumps over a fence to catch a ball.",
            ["a dog", "a fence", "a ball"],
            ["0 above 1"],
        ),
    ],
    "high, overhead, upright, up at": [
        (
            "A man stands upright, with a kite flying high above.",
            ["a man", "a kite"],
            ["1 above 0"],
        ),
        ("A truck has a bird flying overhead.", ["a truck", "a bird"], ["1 above 0"]),
        ("A cat looked up at a bird.", ["a cat", "a bird"], ["0 facing 1"]),
        ("a lamp above a street with cars below", ["a lamp", "cars"], ["1 below 0"]),
    ],
    "it, after a thing with a thing on it": [
        (
            "a boat next to a pier with a dog on it",
            ["a boat", "a pier", "a dog"],
            ["0 next to 1", "2 on 1"],
        ),
        (
            "To the left of a bed is a chair with a cat on it.",
            ["a bed", "a chair", "a cat"],
            ["1 left of 0", "2 on 1"],
        ),
    ],
    "a participle after a person is about that person": [
        (
            "a dog next to a man wearing a hat",
            ["a dog", "a man", "a hat"],
            ["0 next to 1", "2 worn by 1"],
        ),
        (
            "A woman talks to a girl holding a balloon.",
            ["a woman", "a girl", "a balloon"],
            ["2 held by 1"],
        ),
        (
            "A man at a table holding a cup",
            ["a man", "a table", "a cup"],
            ["0 next to 1", "2 held by 0"],
        ),
    ],
    "pronouns as objects of verbs": [
        ("a horse with a woman riding it", ["a horse", "a woman"], ["1 on 0"]),
        (
            "A car passes a bus, leaving it on its left.",
            ["a car", "a bus"],
            ["1 left of 0"],
        ),
        (
            "The cow ran from the dog, leaving it behind.",
            ["a cow", "a dog"],
            ["1 behind 0"],
        ),
    ],
    "he and she": [
        (
            "A man and a woman with a cup. She holds it in her hand.",
            ["a man", "a woman", "a cup"],
            ["2 held by 1"],
        ),
        (
            "A girl and a boy sit on a bench, a kite above him.",
            ["a girl", "a boy", "a bench", "a kite"],
            ["0 on 2", "1 on 2", "3 above 1"],
        ),
    ],
    "what stands on a container stands with it": [
        (
            "a bowl with an egg on a table",
            ["a bowl", "an egg", "a table"],
            ["1 inside 0", "0 on 2"],
        ),
        (
            "A cake with a candle, next to a cup",
            ["a cake", "a candle", "a cup"],
            ["1 on 0", "0 next to 2"],
        ),
        ("a desk with a cat on a chair", ["a desk", "a cat", "a chair"], ["1 on 2"]),
    ],
    "what comes with trees or a window comes with what is next to them": [
        (
            "A zebra grazing next to trees with a giraffe",
            ["a zebra", "trees", "a giraffe"],
            ["0 next to 1", "0 next to 2"],
        ),
        (
            "a dog next to a window with a ball",
            ["a dog", "a window", "a ball"],
            ["0 next to 1", "0 next to 2"],
        ),
    ],
    "looking": [
        (
            "A cat in a box, looking at a fish in a bowl",
            ["a cat", "a box", "a fish", "a bowl"],
            ["0 inside 1", "0 facing 2", "2 inside 3"],
        ),
        (
            "A cat on a mat looking at a dog",
            ["a cat", "a mat", "a dog"],
            ["0 on 1", "0 facing 2"],
        ),
        ("A cat looks at the camera from under a bench.", ["a cat", "a bench"], ["0 below 1"]),
        ("A dog looks at the camera.", ["a dog"], []),
    ],
    "two sides of the canvas": [
        (
            "A boy on the left throws a ball to a girl on the right.",
            ["a boy", "a ball", "a girl"],
            ["0 left of 2"],
        ),
        (
            "A dog on the right looks at a cat on the left.",
            ["a dog", "a cat"],
            ["0 facing 1", "1 left of 0"],
        ),
    ],
    "what is worn goes on": [
        (
            "a man wearing a hat and a scarf stands next to a dog",
            ["a man", "a hat", "a scarf", "a dog"],
            ["1 worn by 0", "2 worn by 0", "0 next to 3"],
        ),
        (
            "A girl holding a ball and a bat is left of a tree.",
            ["a girl", "a ball", "a bat", "a tree"],
            ["1 held by 0", "2 held by 0", "0 left of 3"],
        ),
    ],
    "them": [
        (
            "a man riding a horse with a bird above them",
            ["a man", "a horse", "a bird"],
            ["0 on 1", "2 above 0", "2 above 1"],
        ),
        ("A person stands with a ball below them.", ["a person", "a ball"], ["1 below 0"]),
    ],
    "full of things": [
        (
            "a bicycle with a basket full of flowers in front of it",
            ["a bicycle", "a basket", "flowers"],
            ["2 inside 1", "1 in front of 0"],
        ),
        (
            "a cat with a box full of toys behind it",
            ["a cat", "a box", "toys"],
            ["2 inside 1", "1 behind 0"],
        ),
    ],
    "adjectives after the noun": [
        ("A cat with its mouth open on a bed", ["a cat", "a bed"], ["0 on 1"]),
        ("a box open on a desk", ["a box", "a desk"], ["0 on 1"]),
        ("an open box", ["an open box"], []),
    ],
    "upside down": [
        ("a plate with an upside down cake", ["a plate", "an upside-down cake"], ["1 on 0"]),
        ("A bat hangs upside down over a dog.", ["a bat", "a dog"], ["0 above 1"]),
    ],
    "comparisons of height": [
        (
            "A plane passed a balloon, which flew lower in the sky.",
            ["a plane", "a balloon"],
            ["1 below 0"],
        ),
        (
            "A cat sits on a chair, and a bird sits higher.",
            ["a cat", "a chair", "a bird"],
            ["0 on 1", "2 above 0"],
        ),
        ("a lower shelf", ["a lower shelf"], []),
    ],
    "what rests on a thing stands beside others": [
        (
            "a radio on top of a shelf next to a lamp",
            ["a radio", "a shelf", "a lamp"],
            ["0 above 1", "0 next to 2"],
        ),
        (
            "a fish in a jar next to a cat",
            ["a fish", "a jar", "a cat"],
            ["0 inside 1", "0 next to 2", "1 next to 2"],
        ),
    ],
    "what rests on a thing is spoken of further": [
        (
            "a laptop on a desk, a cup to its right",
            ["a laptop", "a desk", "a cup"],
            ["0 on 1", "2 right of 0"],
        ),
        (
            "a laptop on a desk, and a cat is under it",
            ["a laptop", "a desk", "a cat"],
            ["0 on 1", "2 below 1"],
        ),
    ],
    "what comes with a thing": [
        (
            "a house with a garden, next to a lake",
            ["a house", "a garden", "a lake"],
            ["0 next to 2"],
        ),
        (
            "a bus next to a road with a bicycle on it",
            ["a bus", "a bicycle"],
            ["0 next to 1"],
        ),
        (
            "a lamp next to a highway with a cow",
            ["a lamp", "a highway", "a cow"],
            ["0 next to 1", "0 next to 2"],
        ),
        (
            "The cup is to the left of the jar, with a spoon above it.",
            ["a cup", "a jar", "a spoon"],
            ["0 left of 1", "2 above 1"],
        ),
    ],
    "spelling": [
        ("a dog and two banana's", ["a dog", "a banana", "a banana"], []),
        ("an ornate looking bowl", ["an ornate looking bowl"], []),
        ("a toy that lights up, next to a ball", ["a toy", "a ball"], ["0 next to 1"]),
        ("A brown owl calming sits on a fence.", ["a brown owl", "a fence"], ["0 on 1"]),
    ],
    "surroundings": [
        ("A kitchen with two chairs", ["a chair", "a chair"], []),
        (
            "a horse in a field in front of a building",
            ["a horse", "a building"],
            ["0 in front of 1"],
        ),
        ("A close up of a bird on a branch", ["a bird", "a branch"], ["0 on 1"]),
        ("seven ducks swam in the pond", ["a duck"] * 7, []),
        ("a duck beside a pond", ["a duck", "a pond"], ["0 next to 1"]),
    ],
    "style tags": [
        (
            "a fox next to a lantern, golden hour, film grain, 4k",
            ["a fox", "a lantern"],
            ["0 next to 1"],
        ),
        (
            "a red apple left of a green pear, studio lighting, by Ada Lovelace, trending now",
            ["a red apple", "a green pear"],
            ["0 left of 1"],
        ),
        (
            "cinematic shot | an owl on a branch | volumetric light",
            ["an owl", "a branch"],
            ["0 on 1"],
        ),
        ("Isometric room: a bed left of a desk, low poly", ["a bed", "a desk"], ["0 left of 1"]),
        ("a dog, a cat and a bird, in the style of Monet", ["a dog", "a cat", "a bird"], []),
        ("a fox, a film poster and a lamp", ["a fox", "a film poster", "a lamp"], []),
    ],
    "tags and things": [
        ("a dog and cyclist", ["a dog", "a cyclist"], []),
        ("cat, microwave, dog", ["a cat", "a microwave", "a dog"], []),
        ("cats: one black, one white", ["cats"], []),
    ],
    "fronted participles": [
        ("Perched atop a fence post is a robin.", ["a fence post", "a robin"], ["1 above 0"]),
        ("Parked behind a barn, a tractor rusts.", ["a barn", "a tractor"], ["1 behind 0"]),
        (
            "Quietly sleeping beneath the table are two cats.",
            ["a table", "a cat", "a cat"],
            ["1 below 0", "2 below 0"],
        ),
    ],
    "relative clauses with words of place": [
        ("a box on which a cat sits", ["a box", "a cat"], ["1 on 0"]),
        (
            "a table, under which a dog sleeps, is next to a sofa",
            ["a table", "a dog", "a sofa"],
            ["1 below 0", "0 next to 2"],
        ),
        ("a tower, to whose right a bridge stands", ["a tower", "a bridge"], ["1 right of 0"]),
        (
            "a hut, on whose roof a stork sits, is left of a well",
            ["a hut", "a stork", "a well"],
            ["1 on 0", "0 left of 2"],
        ),
    ],
    "asides about parts": [
        (
            "a windmill, its sails turning, stands left of a barn",
            ["a windmill", "a barn"],
            ["0 left of 1"],
        ),
        (
            "Its sails billowing, the schooner passes in front of an iceberg.",
            ["a schooner", "an iceberg"],
            ["0 in front of 1"],
        ),
        ("her laptop sitting on a desk", ["a laptop", "a desk"], ["0 on 1"]),
        (
            "a dog, its tongue hanging out, sits next to a cat",
            ["a dog", "a cat"],
            ["0 next to 1"],
        ),
    ],
    "who looks": [
        ("Above the sofa we see a painting.", ["a sofa", "a painting"], ["1 above 0"]),
        (
            "If you look behind the car, you will find a bicycle.",
            ["a car", "a bicycle"],
            ["1 behind 0"],
        ),
        (
            "On the left you can see a lamp, and on the right a chair.",
            ["a lamp", "a chair"],
            ["0 left of 1"],
        ),
    ],
    "directions are no places": [
        ("a zebra facing left next to a lion", ["a zebra", "a lion"], ["0 next to 1"]),
        ("a man looking to the right and a dog", ["a man", "a dog"], []),
        ("two zebras, one facing left", ["a zebra", "a zebra"], []),
    ],
    "members that act": [
        ("two dogs, one standing on a chair", ["a dog", "a dog", "a chair"], ["0 on 2"]),
        (
            "two women, one holding an umbrella and one wearing a hat",
            ["a woman", "a woman", "an umbrella", "a hat"],
            ["2 held by 0", "3 worn by 1"],
        ),
        ("one standing dog and one cat", ["a standing dog", "a cat"], []),
    ],
    "things on things": [
        ("a pizza on a pan on a stove", ["a pizza", "a pan", "a stove"], ["0 on 1", "1 on 2"]),
        ("a cup on a book on a table", ["a cup", "a book", "a table"], ["0 on 1", "1 on 2"]),
    ],
    "shorter and wider names": [
        (
            "a dustbin next to a bench, and a cat on top of the bin",
            ["a dustbin", "a bench", "a cat"],
            ["0 next to 1", "2 above 0"],
        ),
        (
            "a poodle and a parrot; the bird is above the dog",
            ["a poodle", "a parrot"],
            ["1 above 0"],
        ),
    ],
    "no articles": [
        (
            "cup left of plate, fork right of plate",
            ["a cup", "a plate", "a fork"],
            ["0 left of 1", "2 right of 1"],
        ),
        ("dog next to dog", ["a dog", "a dog"], ["0 next to 1"]),
        ("dog under table, cat on table", ["a dog", "a table", "a cat"], ["0 below 1", "2 on 1"]),
    ],
    "in the sky": [
        ("a red sun above a mountain", ["a red sun", "a mountain"], ["0 above 1"]),
        ("a cat in the sun next to a chair", ["a cat", "a chair"], ["0 next to 1"]),
    ],
    "owners": [
        ("a ship's wheel next to a barrel", ["a wheel", "a barrel"], ["0 next to 1"]),
        ("the dog's bowl left of a cat", ["a dog", "a bowl", "a cat"], ["1 left of 2"]),
    ],
    "side by side": [
        ("a cup and a saucer side by side", ["a cup", "a saucer"], ["0 next to 1"]),
        (
            "two chairs side by side behind a table",
            ["a chair", "a chair", "a table"],
            ["0 next to 1", "0 behind 2", "1 behind 2"],
        ),
    ],
    "subjects right after words of place": [
        ("behind the bus a cyclist", ["a bus", "a cyclist"], ["1 behind 0"]),
        ("Under a tree a fox sleeps.", ["a tree", "a fox"], ["1 below 0"]),
        (
            "On either side of the door stand two lamps.",
            ["a door", "a lamp", "a lamp"],
            ["1 next to 0", "2 next to 0"],
        ),
        (
            "Between a lamp and a plant is a sofa.",
            ["a lamp", "a plant", "a sofa"],
            ["2 between 0", "2 between 1"],
        ),
    ],
    "one more thing and its place": [
        (
            "a plate with a burger, a fork to its left and a knife to its right",
            ["a plate", "a burger", "a fork", "a knife"],
            ["1 on 0", "2 left of 0", "3 right of 0"],
        ),
        (
            "a table with a lamp, a chair to the left of it",
            ["a table", "a lamp", "a chair"],
            ["1 on 0", "2 left of 0"],
        ),
    ],
    "requests": [
        ("Draw a cat next to a dog", ["a cat", "a dog"], ["0 next to 1"]),
        ("Generate an image of a cat above a dog", ["a cat", "a dog"], ["0 above 1"]),
        ("draw cats", ["cats"], []),
        ("I want a cat on a sofa, please", ["a cat", "a sofa"], ["0 on 1"]),
        ("In this picture, a dog sits next to a cat.", ["a dog", "a cat"], ["0 next to 1"]),
        ("Please draw two cats.", ["a cat", "a cat"], []),
    ],
    "labels": [
        ("left: a cactus, right: a palm tree", ["a cactus", "a palm tree"], ["0 left of 1"]),
        ("Top left: a sun; bottom right: a car", ["a sun", "a car"], []),
    ],
    "rows of things": [
        ("a row of three penguins", ["a penguin"] * 3, ["0 left of 1", "1 left of 2"]),
        ("a column of two boxes", ["a box", "a box"], ["0 above 1"]),
        ("two rows of three apples", ["an apple"] * 6, []),
        (
            "from left to right: a fork, a plate and a knife",
            ["a fork", "a plate", "a knife"],
            ["0 left of 1", "1 left of 2"],
        ),
        ("a fork and a plate from right to left", ["a fork", "a plate"], ["0 right of 1"]),
    ],
    "cans and leaves": [
        ("a red can next to a green can", ["a red can", "a green can"], ["0 next to 1"]),
        ("a trash can right of a bench", ["a trash can", "a bench"], ["0 right of 1"]),
        (
            "a watering can sits next to a tree",
            ["a watering can", "a tree"],
            ["0 next to 1"],
        ),
        ("a cat can be seen on a sofa", ["a cat", "a sofa"], ["0 on 1"]),
        ("a tree without leaves left of a house", ["a tree", "a house"], ["0 left of 1"]),
    ],
    "each has its own place": [
        (
            "a cat in the top left corner and a dog on a sofa",
            ["a cat", "a dog", "a sofa"],
            ["1 on 2"],
        ),
        (
            "a cat and a dog, the cat on a mat and the dog on a rug",
            ["a cat", "a dog", "a mat", "a rug"],
            ["0 on 2", "1 on 3"],
        ),
        (
            "a statue, to its left a fountain and to its right a bench",
            ["a statue", "a fountain", "a bench"],
            ["1 left of 0", "2 right of 0"],
        ),
        (
            "a dog wearing a hat next to a cat wearing a scarf",
            ["a dog", "a hat", "a cat", "a scarf"],
            ["1 worn by 0", "0 next to 2", "3 worn by 2"],
        ),
        (
            "woman holding umbrella, car on left",
            ["a woman", "an umbrella", "a car"],
            ["1 held by 0"],
        ),
        (
            "a squirrel holding an acorn, on a stump",
            ["a squirrel", "an acorn", "a stump"],
            ["1 held by 0", "0 on 2"],
        ),
    ],
    "one and another": [
        ("two cats, a black one and a white one", ["a black cat", "a white cat"], []),
        (
            "three balls: a red one, a blue one and a green one",
            ["a red ball", "a blue ball", "a green ball"],
            [],
        ),
        (
            "one apple on a plate and another in a bowl",
            ["an apple", "a plate", "an apple", "a bowl"],
            ["0 on 1", "2 inside 3"],
        ),
        (
            "two circles and a red square next to a blue one",
            ["a circle", "a circle", "a red square", "a blue square"],
            ["0 next to 3", "1 next to 3", "2 next to 3"],
        ),
    ],
    "between them": [
        (
            "a bed with two pillows and a cat between them",
            ["a bed", "a pillow", "a pillow", "a cat"],
            ["3 between 1", "3 between 2"],
        ),
        (
            "a dog and a cat with a ball between them",
            ["a dog", "a cat", "a ball"],
            ["2 between 0", "2 between 1"],
        ),
    ],
    "what is poured": [
        ("a robot pouring coffee into a mug", ["a robot", "a coffee", "a mug"], ["1 inside 2"]),
        ("a girl putting a ball into a box", ["a girl", "a ball", "a box"], ["1 inside 2"]),
    ],
    "little words of degree": [
        ("a bottle a little to the right of a bowl", ["a bottle", "a bowl"], ["0 right of 1"]),
        ("a bottle a bit below a bowl", ["a bottle", "a bowl"], ["0 below 1"]),
    ],
    "who stands beside her": [
        ("a queen, and beside her stands a boy", ["a queen", "a boy"], ["1 next to 0"]),
        ("a queen with a cup in her hand", ["a queen", "a cup"], ["1 held by 0"]),
    ],
    "both of a pair": [
        (
            "a man and a dog, both running, left of a car",
            ["a man", "a dog", "a car"],
            ["0 left of 2", "1 left of 2"],
        ),
        (
            "a cat and a dog, both under a table",
            ["a cat", "a dog", "a table"],
            ["0 below 2", "1 below 2"],
        ),
    ],
    "parts come with their whole": [
        (
            "a woman with red hair and green eyes next to a man with a beard",
            ["a woman with red hair and green eyes", "a man with a beard"],
            ["0 next to 1"],
        ),
        (
            "a house with a red roof next to a tree",
            ["a house with a red roof", "a tree"],
            ["0 next to 1"],
        ),
        (
            "The dog has floppy ears and sits next to a ball.",
            ["a dog with floppy ears", "a ball"],
            ["0 next to 1"],
        ),
        (
            "a robot with glowing eyes holding a flower",
            ["a robot with glowing eyes", "a flower"],
            ["1 held by 0"],
        ),
        ("a man on a bench with long hair", ["a man with long hair", "a bench"], ["0 on 1"]),
        ("a car with its door open", ["a car"], []),
        (
            "1girl, long hair, blue eyes, sitting on a chair",
            ["a girl with long hair and blue eyes", "a chair"],
            ["0 on 1"],
        ),
        ("a stand with a wheel sitting on it", ["a stand", "a wheel"], ["1 on 0"]),
        ("a house with a door leading to a pond", ["a house", "a door", "a pond"], []),
    ],
    "clothes that somebody comes with are worn": [
        ("a man with brown hair and a hat", ["a man with brown hair", "a hat"], ["1 worn by 0"]),
        (
            "a dog with a red collar on a sofa",
            ["a dog", "a red collar", "a sofa"],
            ["1 worn by 0", "0 on 2"],
        ),
        ("a chair with a hat", ["a chair", "a hat"], []),
    ],
    "only what lives has a back": [
        (
            "an elephant behind a small tree, a bird on its back",
            ["an elephant", "a small tree", "a bird"],
            ["0 behind 1", "2 on 0"],
        ),
        (
            "a dragon next to a castle with a knight on its back",
            ["a dragon", "a castle", "a knight"],
            ["0 next to 1", "2 on 0"],
        ),
        ("a statue with a bird on its head", ["a statue", "a bird"], ["1 on 0"]),
    ],
    "a part named again tells which": [
        (
            "A woman with red hair and a man. The woman with red hair is next to a car.",
            ["a woman with red hair", "a man", "a car"],
            ["0 next to 2"],
        ),
        (
            "a man with red hair and a man with black hair. The man with black hair is on a car.",
            ["a man with red hair", "a man with black hair", "a car"],
            ["1 on 2"],
        ),
        ("The cat has green eyes. The cat has green eyes.", ["a cat with green eyes"], []),
        (
            "A woman with red hair is on a sofa. The woman has green eyes.",
            ["a woman with red hair and green eyes", "a sofa"],
            ["0 on 1"],
        ),
        (
            "a man with a beard is left of a dog, the man with the beard holds a cup",
            ["a man with a beard", "a dog", "a cup"],
            ["0 left of 1", "2 held by 0"],
        ),
    ],
    "a whole with parts gets attributes": [
        ("A cat with a long tail is black.", ["a black cat with a long tail"], []),
        ("The house has a red roof. The house is blue.", ["a blue house with a red roof"], []),
    ],
    "a part with a place or a verb of its own is an object": [
        (
            "a house with a door on the left and a window on the right",
            ["a house", "a door", "a window"],
            ["1 left of 0", "2 right of 0", "1 left of 2"],
        ),
        (
            "a house with a red roof on the left and a barn on the right",
            ["a house with a red roof", "a barn"],
            ["0 left of 1"],
        ),
        (
            "a bicycle with a flat tire leaning on a fence",
            ["a bicycle with a flat tire", "a fence"],
            ["0 touching 1"],
        ),
    ],
    "parts of who wears something": [
        (
            "a woman in a dress with a ponytail",
            ["a woman with a ponytail", "a dress"],
            ["1 worn by 0"],
        ),
        (
            "a woman with a red dress and long hair",
            ["a woman with long hair", "a red dress"],
            ["1 worn by 0"],
        ),
        (
            "a man with sunglasses and a beard next to a car",
            ["a man with a beard", "sunglasses", "a car"],
            ["1 worn by 0", "0 next to 2"],
        ),
        (
            "cute cat, tiny hat, sitting on a pumpkin",
            ["a cute cat", "a tiny hat", "a pumpkin"],
            ["1 worn by 0", "0 on 2"],
        ),
    ],
    "parts that read like verbs": [
        (
            "a tree with green leaves next to a house",
            ["a tree with green leaves", "a house"],
            ["0 next to 1"],
        ),
        (
            "an elephant with its trunk raised standing behind a lion",
            ["an elephant", "a lion"],
            ["0 behind 1"],
        ),
        (
            "a dragon with wings and horns breathing fire",
            ["a dragon with wings and horns", "a fire"],
            [],
        ),
        ("a man with a beard riding a horse", ["a man with a beard", "a horse"], ["0 on 1"]),
    ],
    "hands that hold each other are no objects": [
        (
            "a man and a woman holding hands under an umbrella",
            ["a man", "a woman", "an umbrella"],
            ["0 below 2", "1 below 2"],
        ),
        (
            "a samurai in black armor, katana in hand",
            ["a samurai", "a black armor", "a katana"],
            ["1 worn by 0", "2 held by 0"],
        ),
        (
            "a squirrel holding an acorn in its paws on top of a log",
            ["a squirrel", "an acorn", "a log"],
            ["1 held by 0", "0 above 2"],
        ),
    ],
    "a list ends where someone acts": [
        (
            "a man holding a cup and a dog sitting next to him",
            ["a man", "a cup", "a dog"],
            ["1 held by 0", "2 next to 0"],
        ),
        (
            "a man riding a horse and a dog running behind him",
            ["a man", "a horse", "a dog"],
            ["0 on 1", "2 behind 0"],
        ),
        (
            "a boy with a kite and a girl holding a ball",
            ["a boy", "a kite", "a girl", "a ball"],
            ["3 held by 2"],
        ),
        (
            "a table with a cat and a dog sitting on it",
            ["a table", "a cat", "a dog"],
            ["1 on 0", "2 on 0"],
        ),
    ],
    "both do it": [
        (
            "a large dog next to a small cat, both wearing hats",
            ["a large dog", "a small cat", "a hat", "a hat"],
            ["0 next to 1", "2 worn by 0", "3 worn by 1"],
        ),
        (
            "a cat next to a dog, both sitting on a mat",
            ["a cat", "a dog", "a mat"],
            ["0 next to 1", "0 on 2", "1 on 2"],
        ),
    ],
    "asides in brackets": [
        ("a man (wearing a hat) and a woman", ["a man", "a hat", "a woman"], ["1 worn by 0"]),
        (
            "a table (with two chairs) next to a window",
            ["a table", "a chair", "a chair", "a window"],
            ["0 next to 3"],
        ),
        ("a cat (on the left) and a dog", ["a cat", "a dog"], []),
    ],
    "what is not so says nothing of what follows": [
        (
            "a cat not on a table, a dog under a chair",
            ["a cat", "a table", "a dog", "a chair"],
            ["2 below 3"],
        ),
        (
            "The cat is not on the sofa and the dog is on the chair.",
            ["a cat", "a sofa", "a dog", "a chair"],
            ["2 on 3"],
        ),
        ("the man is not wearing a hat", ["a man"], []),
    ],
    "one more of another colour": [
        ("two red apples and one green", ["a red apple", "a red apple", "a green apple"], []),
        ("two small dogs, one black and one white", ["a small black dog", "a small white dog"], []),
    ],
    "them in the next sentence": [
        (
            "A cat is next to a dog. A red ball is below them.",
            ["a cat", "a dog", "a red ball"],
            ["0 next to 1", "2 below 0", "2 below 1"],
        ),
        ("A man holds a cup. It is red.", ["a man", "a red cup"], ["1 held by 0"]),
    ],
    "what only front ends read": [
        ("a photo of a <cat-toy> next to a book", ["a cat-toy", "a book"], ["0 next to 1"]),
        ("a cat --ar 16:9, a dog on the left", ["a cat", "a dog"], []),
        ("a cat—ar 16:9", ["a cat"], []),
        ("(a cat)1.3 next to a dog", ["a cat", "a dog"], ["0 next to 1"]),
        (
            "a cat next to a dog BREAK a red ball below them",
            ["a cat", "a dog", "a red ball"],
            ["0 next to 1", "2 below 0", "2 below 1"],
        ),
        (
            "a cat next to a dog. Negative prompt: blurry, bad hands. Steps: 20, Sampler: Euler a",
            ["a cat", "a dog"],
            ["0 next to 1"],
        ),
        (
            "1Girl, long hair, looking at viewer, holding sword, red cape",
            ["a girl with long hair", "a sword", "a red cape"],
            ["1 held by 0", "2 worn by 0"],
        ),
        ("a cat --draft --exp 10 --no dogs, birds --tile", ["a cat"], []),
    ],
    "each wears its own": [
        (
            "a girl with red boots and a blue hat next to a bicycle",
            ["a girl", "red boots", "a blue hat", "a bicycle"],
            ["1 worn by 0", "2 worn by 0", "0 next to 3"],
        ),
        (
            "a man and a woman, both wearing sunglasses, behind a table",
            ["a man", "a woman", "sunglasses", "sunglasses", "a table"],
            ["2 worn by 0", "3 worn by 1", "0 behind 4", "1 behind 4"],
        ),
        (
            "two women wearing red dresses",
            ["a woman", "a woman", "a red dress", "a red dress"],
            ["2 worn by 0", "3 worn by 1"],
        ),
        (
            "two men in brown boots next to a car",
            ["a man", "a man", "brown boots", "brown boots", "a car"],
            ["2 worn by 0", "3 worn by 1", "0 next to 4", "1 next to 4"],
        ),
        ("a man in red shoes", ["a man", "red shoes"], ["1 worn by 0"]),
        ("a cat wearing a hat and a dog", ["a cat", "a hat", "a dog"], ["1 worn by 0"]),
        (
            "a man wearing a hat and a scarf and a woman",
            ["a man", "a hat", "a scarf", "a woman"],
            ["1 worn by 0", "2 worn by 0"],
        ),
        ("a man holding a baseball glove", ["a man", "a baseball glove"], ["1 held by 0"]),
        ("a man has yellow shoes", ["a man", "yellow shoes"], ["1 worn by 0"]),
    ],
    "participles that look like nouns or adjectives": [
        (
            "two children building a sandcastle, a dog running behind them",
            ["a child", "a child", "a sandcastle", "a dog"],
            ["3 behind 0", "3 behind 1"],
        ),
        ("a knight in shining armor", ["a knight", "a shining armor"], ["1 worn by 0"]),
    ],
    "after a comma comes something new": [
        (
            "a girl holding an umbrella, a dog with a red collar to her left",
            ["a girl", "an umbrella", "a dog", "a red collar"],
            ["1 held by 0", "3 worn by 2", "2 left of 0"],
        ),
        (
            "a girl holding an umbrella, a tree to her left",
            ["a girl", "an umbrella", "a tree"],
            ["1 held by 0", "2 left of 0"],
        ),
        (
            "a knight riding a horse, a castle in the background on the right",
            ["a knight", "a horse", "a castle"],
            ["0 on 1", "2 behind 0"],
        ),
        (
            "a man holding a cup, a plate and a fork",
            ["a man", "a cup", "a plate", "a fork"],
            ["1 held by 0", "2 held by 0", "3 held by 0"],
        ),
    ],
    "a part with its own place is an object": [
        ("a man with a tall tower behind him", ["a man", "a tall tower"], ["1 behind 0"]),
        ("a woman with a red door behind her", ["a woman", "a red door"], ["1 behind 0"]),
        (
            "two cats with a big screen between them",
            ["a cat", "a cat", "a big screen"],
            ["2 between 0", "2 between 1"],
        ),
        ("a man with a branch in his hand", ["a man", "a branch"], ["1 held by 0"]),
        (
            "a dog next to a house with a red door behind it",
            ["a dog", "a house", "a red door"],
            ["0 next to 1", "2 behind 0"],
        ),
        ("a viking with a horn and a shield", ["a viking", "a horn", "a shield"], []),
        (
            "The white dog with black spots is in a basket.",
            ["a white dog with black spots", "a basket"],
            ["0 inside 1"],
        ),
    ],
    "more than a part": [
        (
            "a man with a beard and a parrot on his shoulder",
            ["a man with a beard", "a parrot"],
            ["1 on 0"],
        ),
        (
            "a clown with a red nose and a balloon in his hand",
            ["a clown with a red nose", "a balloon"],
            ["1 held by 0"],
        ),
        (
            "a woman with blond hair and a cup in her hands sits next to a dog",
            ["a woman with blond hair", "a cup", "a dog"],
            ["1 held by 0", "0 next to 2"],
        ),
        (
            "a house with a red roof and a tree next to it",
            ["a house with a red roof", "a tree"],
            ["1 next to 0"],
        ),
        (
            "a woman with red hair and a man with a hat",
            ["a woman with red hair", "a man", "a hat"],
            ["2 worn by 1"],
        ),
    ],
    "clothes of several": [
        (
            "three girls wearing dresses of silk",
            ["a girl", "a girl", "a girl", "a dress of silk", "a dress of silk", "a dress of silk"],
            ["3 worn by 0", "4 worn by 1", "5 worn by 2"],
        ),
        (
            "two men wearing shirts and ties, the ties over the shirts",
            ["a man", "a man", "a shirt", "a shirt", "a tie", "a tie"],
            ["2 worn by 0", "3 worn by 1", "4 worn by 0", "5 worn by 1", "4 above 2", "5 above 3"],
        ),
        (
            "two girls in kimonos and sandals holding umbrellas",
            ["a girl", "a girl", "a kimono", "a kimono", "sandals", "sandals", "umbrellas"],
            [
                "2 worn by 0",
                "3 worn by 1",
                "4 worn by 0",
                "5 worn by 1",
                "6 held by 0",
                "6 held by 1",
            ],
        ),
        (
            "A mother holding a baby, both wearing pink hats",
            ["a mother", "a baby", "a pink hat", "a pink hat"],
            ["1 held by 0", "2 worn by 0", "3 worn by 1"],
        ),
        (
            "a man wearing a shirt and a tie next to a man wearing a hoodie",
            ["a man", "a shirt", "a tie", "a man", "a hoodie"],
            ["1 worn by 0", "2 worn by 0", "0 next to 3", "4 worn by 3"],
        ),
        (
            "A man in a red shirt and black pants resting on a bench.",
            ["a man", "a red shirt", "black pants", "a bench"],
            ["1 worn by 0", "2 worn by 0", "0 on 3"],
        ),
        (
            "a woman in a yellow raincoat next to a black dog",
            ["a woman", "a yellow raincoat", "a black dog"],
            ["1 worn by 0", "0 next to 2"],
        ),
    ],
    "another with other parts": [
        (
            "the woman with red hair is next to the woman with black hair",
            ["a woman with red hair", "a woman with black hair"],
            ["0 next to 1"],
        ),
        (
            "two men with beards, the man with the beard holds a cup",
            ["a man with beards", "a man with beards", "a cup"],
            ["2 held by 1"],
        ),
    ],
    "prose that looks like markup": [
        ("A quiet street—no cars, a red house on a hill", ["a quiet street", "a red house"], []),
        ("(a cat)2 dogs", ["a cat", "a dog", "a dog"], []),
        ("embedding:foo,red cat", ["a red cat"], []),
        ("2women and 1man", ["a woman", "a woman", "a man"], []),
    ],
    "things that do something": [
        (
            "A photographer with a camera around his neck standing to the left of a bride",
            ["a photographer", "a camera", "a bride"],
            ["0 left of 2"],
        ),
        ("a viking blowing a horn", ["a viking", "a horn"], []),
        ("a boy with long arms catching a ball", ["a boy with long arms", "a ball"], []),
    ],
    "which of them": [
        (
            "There is a dog and a cat. The former is to the left of the latter.",
            ["a dog", "a cat"],
            ["0 left of 1"],
        ),
        (
            "a red ball and a blue ball, the former on a chair, the latter under a table",
            ["a red ball", "a blue ball", "a chair", "a table"],
            ["0 on 2", "1 below 3"],
        ),
        (
            "Two dogs. The first dog is on a sofa, the second dog is under a table.",
            ["a dog", "a dog", "a sofa", "a table"],
            ["0 on 2", "1 below 3"],
        ),
        ("Two dogs: the first is black, the second is white.", ["a black dog", "a white dog"], []),
        ("the last train on a bridge", ["a last train", "a bridge"], ["0 on 1"]),
    ],
    "some of them": [
        (
            "three cats, two of them on a sofa and one under a table",
            ["a cat", "a cat", "a cat", "a sofa", "a table"],
            ["0 on 3", "1 on 3", "2 below 4"],
        ),
        (
            "four apples, three red and one green",
            ["a red apple", "a red apple", "a red apple", "a green apple"],
            [],
        ),
        ("two cats, three dogs", ["a cat", "a cat", "a dog", "a dog", "a dog"], []),
    ],
    "not here but there": [
        ("a cat not on the table but under it", ["a cat", "a table"], ["0 below 1"]),
        ("a dog not to the left but to the right of a tree", ["a dog", "a tree"], ["0 right of 1"]),
        ("a chair with no cat on it but a dog", ["a chair", "a dog"], []),
    ],
    "what only generators read": [
        (
            "(a red cat:1.3) next to a ((blue) dog:1.2) <lora:film:0.8> --ar 16:9 --v 5.2",
            ["a red cat", "a blue dog"],
            ["0 next to 1"],
        ),
        (
            "a cat (on the left) and a [dog] {on the right}",
            ["a cat", "a dog"],
            ["0 left of 1"],
        ),
        (
            "a cat on a 1.5 meter tall stool, shot on Canon EOS R5, ISO 100, f/1.8, 1/200s",
            ["a cat", "a 1.5 meter tall stool"],
            ["0 on 1"],
        ),
        ("a fork -- and a knife", ["a fork", "a knife"], []),
    ],
    "verbs that no list knows": [
        ("two girls cooked dinner", ["a girl", "a girl", "a dinner"], []),
        (
            "The colorful flowers bloomed next to the fence.",
            ["colorful flowers", "a fence"],
            ["0 next to 1"],
        ),
        ("a zeppelin moored above a gizmo", ["a zeppelin", "a gizmo"], ["0 above 1"]),
    ],
}


@pytest.mark.parametrize(
    ("text", "phrases", "relations"),
    [pytest.param(*case, id=f"{name}: {case[0]}") for name in CASES for case in CASES[name]],
)
def test_construction_gives_objects_and_relations(
    text: str, phrases: list[str], relations: list[str]
) -> None:
    found = parse(text)
    assert [thing.phrase for thing in found.objects] == phrases
    assert [f"{r.subject} {r.predicate} {r.object}" for r in found.relations] == relations


@pytest.mark.parametrize(
    ("text", "counts", "indices"),
    [
        ("two dogs", [(1, 1), (1, 1)], [0, 1]),
        ("several birds", [(3, 7)], [0]),
        ("a few birds and a cat", [(2, 4), (1, 1)], [0, 0]),
        ("red shoes", [(1, 1)], [0]),
        ("green apples", [(2, 9)], [0]),
        ("500 dogs", [(500, 500)], [0]),
        ("a dog and two cats", [(1, 1), (1, 1), (1, 1)], [0, 0, 1]),
    ],
)
def test_plurals_have_counts_and_indices(
    text: str, counts: list[tuple[int, int]], indices: list[int]
) -> None:
    found = parse(text).objects
    assert [thing.count for thing in found] == counts
    assert [thing.index for thing in found] == indices


@pytest.mark.parametrize(
    ("text", "dogs", "cats"),
    [
        ("three dogs with a few cats, the number of dogs is more than that of cats", 3, 2),
        ("two dogs with a few cats, the number of dogs is more than that of cats", 2, 1),
        ("one dog and a few cats, the number of dogs is less than that of cats", 1, 2),
        ("three dogs and the same number of cats", 3, 3),
    ],
)
def test_comparison_fixes_a_vague_number(text: str, dogs: int, cats: int) -> None:
    nouns = [thing.noun for thing in parse(text).objects]
    assert (nouns.count("dog"), nouns.count("cat")) == (dogs, cats)


@pytest.mark.parametrize(
    ("text", "positions"),
    [
        ("a cat in the top left corner", [(-1, -1, None)]),
        ("a dog at the centre and a cat on the right", [(0, 0, None), (1, None, None)]),
        ("a cat in the middle of the picture", [(0, 0, None)]),
        ("a tree in the background", [(None, None, -1)]),
        ("In the background, a ship passes an island.", [(None, None, -1), NOWHERE]),
        ("a girl with trees in the background", [NOWHERE, (None, None, -1)]),
        ("In the foreground stands a horse.", [(None, None, 1)]),
        ("a cat in the top center", [(0, -1, None)]),
        ("Left: a dog. Right: a cat.", [(-1, None, None), (1, None, None)]),
        ("On the left there is a lamp.", [(-1, None, None)]),
        ("On the right, you can see a lamp.", [(1, None, None)]),
        ("a zebra facing left", [NOWHERE]),
        ("a lamp in the lower right corner of the image", [(1, 1, None)]),
        ("The cat isn't on the left.", [NOWHERE]),
        ("a dog with a cat to its left", [NOWHERE, NOWHERE]),
        ("a dog with a cat to the left", [NOWHERE, NOWHERE]),
    ],
)
def test_places_on_the_canvas_are_kept(text: str, positions: list[tuple]) -> None:
    assert [thing.position for thing in parse(text).objects] == positions


@pytest.mark.parametrize(
    ("text", "noun"),
    [
        ("a white toilet seat", "toilet"),
        ("the roof of a car", "car"),
        ("a stove top", "stove"),
        ("a laptop computer", "laptop"),
        ("a microwave oven", "microwave"),
        ("a computer keyboard", "keyboard"),
        ("a slice of pizza", "pizza"),
        ("a picture frame", "picture frame"),
    ],
)
def test_noun_says_what_the_thing_is(text: str, noun: str) -> None:
    assert [thing.noun for thing in parse(text).objects] == [noun]


def test_spans_index_the_text() -> None:
    text = "  A RED cat's toy is to the LEFT of two dogs. The toy isn't under it."
    found = parse(text)
    assert [text[slice(*thing.span)] for thing in found.objects] == [
        "A RED cat",
        "toy",
        "two dogs",
        "two dogs",
    ]
    assert {text[slice(*r.span)] for r in found.relations} == {"to the LEFT of"}


@pytest.mark.parametrize(
    "text",
    ["", "!!!", "🐱🚗", "and of the", "\"'(((", "\x00\x01", "photo of", "without any people"],
)
def test_nothing_to_place_gives_no_objects(text: str) -> None:
    found = parse(text)
    assert (found.objects, found.relations) == ((), ())


def test_unknown_engine_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="engine must be one of grammar"):
        parse("a dog", engine="oracle")
