"""Questions as people type them: templates with slots, filled by chance.

    "add {number} to {number}"                      every slot is filled anew
    "{name1} is taller than {name2}. Is {name2}..." slots of one name and digit are filled alike, of others differently

Templates of a task ask the same thing in a few ways; people find many more, and these are some of them. A phrase
belongs to a split by the hash of its words, as every question does, unless a file holds the same words.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence

from t2cli.tasks.sampling import split_of


def _list(words: str) -> list[str]:
    return words.split(", ")


SLOTS: Mapping[str, Sequence[str]] = {
    "digit": [str(number) for number in range(2, 13)],
    "number": [str(number) for number in range(2, 100)],
    "year": [str(number) for number in range(1400, 2020)],
    "name": _list(
        "Ada, Alan, Bella, Carl, Dora, Emil, Fred, Gina, Hugo, Ida, Jan, Karl, Lena, Milo, Nora, Olaf, Pia, "
        "Quinn, Rita, Sven, Tina, Ugo, Vera, Will, Xenia, Yara, Zoe, Omar, Priya, Chen, Aisha, Diego"
    ),
    "thing": _list(
        "tea, music, dogs, painting, chess, rain, books, football, honey, trains, maps, roses, cheese, "
        "running, films, snow"
    ),
    "animal": _list("lions, wolves, horses, robins, frogs, spiders, whales, rabbits, owls, bears"),
    "group": _list("teachers, singers, farmers, pilots, students, dancers, bakers, lawyers, sailors, poets"),
    "place": _list(
        "Spain, Japan, Kenya, Peru, Norway, India, Egypt, Canada, Brazil, Greece, London, Tokyo, Cairo, "
        "Boston, Lima, Oslo"
    ),
    "topic": _list(
        "the ocean, friendship, dragons, winter, a lost dog, space travel, the Romans, volcanoes, democracy, "
        "gravity, jazz, climate change, dinosaurs, the internet, bees, football, the moon, happiness, steam "
        "engines, tea"
    ),
    "dish": _list(
        "soup, lasagna, a chocolate cake, fried rice, bread, curry, an omelette, apple pie, salad, tomato sauce"
    ),
    "relation": _list("mother, boss, best friend, sister, neighbour, teacher, landlord, grandfather, wife, colleague"),
    "event": _list("a birthday party, a wedding, a trip to the sea, a job interview, a rainy Sunday, my holidays"),
    "word": _list(
        "thank you, freedom, butterfly, how are you, irony, window, good night, empathy, where is the station"
    ),
    "language": _list("German, Italian, Japanese, Arabic, Portuguese, Swedish, Chinese, Latin"),
    "work": _list("Macbeth, the Odyssey, Moby Dick, Star Wars, Don Quixote, The Lion King, Pride and Prejudice"),
    "invention": _list("telephone, light bulb, bicycle, printing press, radio, microscope, airplane, piano"),
    "do": _list(
        "sort a list of words, count the words in a text, find the smallest number in a list, merge two "
        "dictionaries, check for a palindrome, print the fibonacci numbers, read a file line by line, swap "
        "two variables, average a list, convert hours to minutes, remove spaces from a string, flatten a "
        "nested list, generate a random password, square every element of a list, split a sentence into "
        "words, compare two strings, find common elements"
    ),
    "does": _list(
        "sorts a list of words, counts the words in a text, finds the smallest number, merges two "
        "dictionaries, checks for a palindrome, prints the fibonacci numbers, reads a csv file, swaps two "
        "values, averages a list, converts hours to minutes, strips spaces from a string, flattens a nested "
        "list, makes a random password, squares every element, splits a sentence into words, compares two "
        "strings, adds two numbers, doubles x"
    ),
    "algorithm": _list(
        "bubble sort, quicksort, linear search, a stack, a queue, a linked list, depth first search, the "
        "sieve of Eratosthenes, Euclid's algorithm, a hash table, merge sort"
    ),
    "function": _list(
        "is_odd, half, total, clean_up, get_last, to_upper, count_items, min_of, find_max, repeat, add_one"
    ),
}
PATIENCE = 100  # rounds over all templates without a phrase of the split
_SLOT = re.compile(r"\{([a-z]+)([0-9]?)\}")


def unknown_slot(template: str) -> str | None:
    """Return the first slot of a template that there are no words for, None if there is none."""
    return next((match[0] for match in _SLOT.finditer(template) if match[1] not in SLOTS), None)


def filled(template: str, rng: random.Random) -> str:
    """Return a template with its slots filled."""
    chosen: dict[str, str] = {}

    def word(match: re.Match[str]) -> str:
        name, digit = match.groups()
        if not digit:
            return rng.choice(SLOTS[name])
        if match[0] not in chosen:
            taken = {found for slot, found in chosen.items() if slot.startswith("{" + name)}
            chosen[match[0]] = rng.choice([each for each in SLOTS[name] if each not in taken])
        return chosen[match[0]]

    return _SLOT.sub(word, template)


def phrases(
    templates: Sequence[str], split: str, rng: random.Random, split_of: Callable[[str], str] = split_of
) -> Iterator[str]:
    """Yield phrases of a split: without end, but for templates that seem to have none in it."""
    fruitless = 0
    while fruitless < PATIENCE:
        fruitless += 1
        for template in rng.sample(list(templates), len(templates)):
            phrase = filled(template, rng)
            if split_of(phrase) == split:
                fruitless = 0
                yield phrase
