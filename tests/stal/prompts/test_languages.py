"""Which texts are told to be in another language than English."""

import pytest

from stal.prompts import looks_english

FOREIGN = [
    "ein roter Kreis links von einem blauen Quadrat",
    "un cercle rouge à gauche d'un carré bleu",
    "un gato a la izquierda de un perro",
    "um gato preto em cima da mesa",
    "una donna con il cappello",
    "een rode cirkel naast een blauw vierkant",
    "红色的圆在蓝色方块的左边",
    "赤い丸と青い四角",
    "красный круг слева от синего квадрата",
    "قطة سوداء وكلب أبيض",
    "ein Hund",
    "una casa roja",
    "um gato preto",
]
ENGLISH = [
    "",
    "512",
    "a red circle to the left of a blue square",
    "1girl, blue hair, masterpiece, best quality",
    "an oil painting by Leonardo da Vinci, el greco",
    "a 猫 next to a dog",
    "a Königsegg and a Citroën in São Paulo",
    "the die is cast, des moines",
    "cyberpunk city, neon, rain",
    "crème brûlée",
    "Vincent van Gogh",
    "un painted on a wall",
]


@pytest.mark.parametrize("text", FOREIGN)
def test_other_languages(text):
    assert not looks_english(text)


@pytest.mark.parametrize("text", ENGLISH)
def test_english_and_what_cannot_be_told(text):
    assert looks_english(text)
