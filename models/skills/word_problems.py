"""Word problems, and everyday questions beside them, for chat models: invented here, seeded, no two alike."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

_NAMES = (
    *("Anna", "Ben", "Carla", "David", "Emma", "Farid", "Grace", "Hugo", "Ines", "Jonas"),
    *("Kim", "Leo", "Maya", "Noah", "Olga", "Pablo", "Rosa", "Sam", "Tara"),
)
_THINGS = (
    *("apples", "pencils", "stickers", "marbles", "cookies", "books"),
    *("shells", "stamps", "balloons", "cards", "muffins", "coins"),
)
_SHOPS = ("a bakery", "a bookshop", "a farm stand", "a toy shop", "a market stall", "a school kiosk")
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")

# A problem and its solution, as a sum with its result.
_Problem = tuple[str, str]
_Draw = random.Random


def _gain(draw: _Draw) -> _Problem:
    name, thing, a, b = draw.choice(_NAMES), draw.choice(_THINGS), draw.randint(5, 60), draw.randint(3, 40)
    return (
        f"{name} has {a} {thing} and gets {b} more. How many {thing} does {name} have now?",
        f"{a} + {b} = {a + b}",
    )


def _loss(draw: _Draw) -> _Problem:
    name, other = draw.sample(_NAMES, 2)
    thing, a = draw.choice(_THINGS), draw.randint(20, 90)
    b = draw.randint(3, a - 5)
    return f"{name} had {a} {thing} and gave {b} of them to {other}. How many are left?", f"{a} - {b} = {a - b}"


def _boxes(draw: _Draw) -> _Problem:
    thing, a, b = draw.choice(_THINGS), draw.randint(3, 12), draw.randint(4, 25)
    return f"There are {a} boxes with {b} {thing} in each. How many {thing} are there in total?", f"{a} * {b} = {a * b}"


def _share(draw: _Draw) -> _Problem:
    thing, a, b = draw.choice(_THINGS), draw.randint(2, 9), draw.randint(3, 15)
    return (
        f"{draw.choice(_NAMES)} shares {a * b} {thing} equally among {a} friends. How many does each friend get?",
        f"{a * b} / {a} = {b}",
    )


def _price(draw: _Draw) -> _Problem:
    shop, thing, a, b = draw.choice(_SHOPS), draw.choice(_THINGS), draw.randint(2, 9), draw.randint(2, 12)
    return (
        f"At {shop}, one bag of {thing} costs ${a}. {draw.choice(_NAMES)} buys {b} bags. How much does it cost?",
        f"{a} * {b} = {a * b}",
    )


def _change(draw: _Draw) -> _Problem:
    name, a, b = draw.choice(_NAMES), draw.randint(2, 9), draw.randint(2, 5)
    paid = draw.choice((50, 100))
    return (
        f"{name} buys {b} tickets for ${a} each and pays with a {paid} dollar bill. How much change does {name} get?",
        f"{paid} - {a} * {b} = {paid - a * b}",
    )


def _speed(draw: _Draw) -> _Problem:
    what, a, b = draw.choice(("train", "bus", "car", "ship")), draw.randint(3, 12) * 10, draw.randint(2, 6)
    return f"A {what} travels at {a} km per hour for {b} hours. How far does it go?", f"{a} * {b} = {a * b}"


def _twice(draw: _Draw) -> _Problem:
    name, other = draw.sample(_NAMES, 2)
    a, day = draw.randint(4, 30), draw.choice(_DAYS)
    return (
        f"On {day}, {name} read {a} pages, and {other} read twice as many. How many pages did they read altogether?",
        f"{a} + 2 * {a} = {3 * a}",
    )


def _age(draw: _Draw) -> _Problem:
    name, other = draw.sample(_NAMES, 2)
    a, b = draw.randint(6, 20), draw.randint(2, 15)
    return f"{name} is {a} years old. {other} is {b} years older. How old is {other}?", f"{a} + {b} = {a + b}"


def _wage(draw: _Draw) -> _Problem:
    name, a, b, c = draw.choice(_NAMES), draw.randint(8, 25), draw.randint(2, 8), draw.randint(2, 5)
    return (
        f"{name} earns ${a} an hour and works {b} hours a day. How much does {name} earn in {c} days?",
        f"{a} * {b} * {c} = {a * b * c}",
    )


def _half(draw: _Draw) -> _Problem:
    thing, a = draw.choice(_THINGS), draw.randint(5, 45) * 2
    return (
        f"A shop sold {a} {thing} in the morning and half as many in the afternoon. How many did it sell that day?",
        f"{a} + {a} / 2 = {a + a // 2}",
    )


def _percent(draw: _Draw) -> _Problem:
    a, b = draw.randint(2, 20) * 20, draw.choice((10, 20, 25, 50))
    return (
        f"A jacket costs ${a}. In a sale it is {b}% cheaper. What is the new price?",
        f"{a} - {a} * {b} / 100 = {a - a * b // 100}",
    )


def _rows(draw: _Draw) -> _Problem:
    a, b, c = draw.randint(4, 15), draw.randint(5, 20), draw.randint(2, 9)
    return (
        f"A hall has {a} rows of {b} chairs. If {c} chairs are broken, how many can be used?",
        f"{a} * {b} - {c} = {a * b - c}",
    )


def _weeks(draw: _Draw) -> _Problem:
    name, a, b = draw.choice(_NAMES), draw.randint(2, 12), draw.randint(2, 8)
    return (
        f"{name} saves ${a} every week. How much money does {name} have after {b} weeks, starting with $10?",
        f"10 + {a} * {b} = {10 + a * b}",
    )


def _proportion(draw: _Draw) -> _Problem:
    thing, a, b, c = draw.choice(_THINGS), draw.randint(2, 8), draw.randint(9, 15), draw.randint(2, 6)
    return (
        f"If {a} {thing} cost ${a * c}, what is the price of {b} {thing}?",
        f"{a * c} / {a} * {b} = {b * c}",
    )


def _recipe(draw: _Draw) -> _Problem:
    what, people, each = draw.choice(("eggs", "carrots", "potatoes")), draw.randint(2, 6), draw.randint(1, 4)
    guests = people * draw.randint(2, 6)
    return (
        f"A soup for {people} people takes {people * each} {what}. How many {what} does it take for {guests} people?",
        f"{people * each} / {people} * {guests} = {each * guests}",
    )


def _profit(draw: _Draw) -> _Problem:
    name, a, b = draw.choice(_NAMES), draw.randint(20, 60), draw.randint(2, 5)
    c = draw.randint(10, 30)
    return (
        f"{name} sold {a} cups of lemonade for ${b} each and had paid ${c} for lemons. What was the profit?",
        f"{a} * {b} - {c} = {a * b - c}",
    )


def _tank(draw: _Draw) -> _Problem:
    a, b = draw.randint(3, 15), draw.randint(5, 30)
    return (
        f"A tap gives {a} litres of water a minute. How many minutes does it take to fill a tank of {a * b} litres?",
        f"{a * b} / {a} = {b}",
    )


def _taller(draw: _Draw) -> _Problem:
    name, other = draw.sample(_NAMES, 2)
    a, b = draw.randint(140, 165), draw.randint(3, 25)
    return f"{name} is {a + b} cm tall and {other} {a} cm. How much taller is {name}?", f"{a + b} - {a} = {b}"


def _teams(draw: _Draw) -> _Problem:
    a, b = draw.randint(3, 9), draw.randint(4, 12)
    return f"{a * b} children make teams of {a}. How many teams are there?", f"{a * b} / {a} = {b}"


_PROBLEMS: tuple[Callable[[_Draw], _Problem], ...] = (
    *(_gain, _loss, _boxes, _share, _price, _change, _speed, _twice, _age, _wage, _half, _percent, _rows, _weeks),
    *(_proportion, _recipe, _profit, _tank, _taller, _teams),
)

_EVERYDAY: Mapping[str, Sequence[str]] = {
    "What is the capital of {}?": ("France", "Japan", "Brazil", "Egypt", "Norway", "Canada", "Kenya", "Peru", "Italy"),
    "Explain {} in simple terms.": (
        *("photosynthesis", "gravity", "inflation", "the water cycle", "a black hole", "vaccines", "electricity"),
    ),
    "Write a short poem about {}.": ("the sea", "autumn", "an old friend", "the moon", "rain", "my cat", "coffee"),
    "Give me three tips for {}.": (
        *("sleeping better", "learning a language", "a job interview", "saving energy", "growing tomatoes"),
        *("taking photographs", "running my first race"),
    ),
    "How do I {}?": (
        *(
            "boil an egg",
            "tie a tie",
            "remove a coffee stain",
            "write a cover letter",
            "plant a tree",
            "fix a flat tire",
        ),
        *("make pancakes", "train a puppy"),
    ),
    "Who wrote {}?": ("Hamlet", "Don Quixote", "Pride and Prejudice", "The Odyssey", "Moby-Dick", "Faust"),
    "What is the difference between {}?": (
        *("a lake and a pond", "a virus and a bacterium", "weather and climate", "tea and coffee"),
        *("a frog and a toad", "jam and jelly"),
    ),
    "Translate '{}' into French.": (
        *("Good morning", "Where is the station?", "Thank you very much", "I am hungry", "See you tomorrow"),
    ),
    "How much does {} cost?": ("a train ticket to Paris", "a good bicycle", "a haircut", "a kilo of flour"),
    "How long does it take to {}?": ("bake bread", "fly to Tokyo", "read a novel", "grow a tomato"),
    "How many {} are there?": ("continents", "planets", "players in a football team", "strings on a violin"),
    "Write a function that {}.": ("reverses a string", "sorts a list of numbers", "counts the words of a text"),
    "What can I cook with {}?": ("rice and beans", "three eggs and some milk", "a pound of potatoes"),
    "Write an e-mail that {}.": ("thanks my teacher", "asks for a day off", "invites 12 people to dinner"),
    "Give me a recipe for {}.": ("pancakes", "tomato soup for 4 people", "apple pie", "lemonade"),
    "Plan {}.": ("a week of dinners", "a day in Rome", "a birthday for 10 children"),
    "Suggest {}.": (
        *("a name for my dog", "a gift for my mother", "a good book to read", "a quick dinner", "a weekend trip"),
        *("a title for a story about a lighthouse", "a hobby for winter"),
    ),
    "Tell me about {}.": (
        *("the Roman Empire", "penguins", "the history of jazz", "Marie Curie", "the Amazon rainforest", "volcanoes"),
        *("the Great Wall of China", "honey bees"),
    ),
    "{}": (
        *("Hello! How are you today?", "What can you do?", "When did the Second World War end?", "Thanks a lot!"),
        *("How many days does a week have?", "At what temperature does water boil?", "Why is the sky blue?"),
        *("What should I wear when it is 5 degrees outside?", "How old do elephants get?", "Is a tomato a fruit?"),
        *("Which year did people first land on the moon?", "How much sleep does a child need?"),
        *("How far is the moon?", "How fast does sound travel?", "How tall is the Eiffel Tower?"),
        *("What is a fair price?",),
        *("Who won the match 3 to 1?", "Is 20 dollars a good tip?", "What time is it in Tokyo when it is 3 pm here?"),
    ),
}


def word_problems(seed: int = 0) -> Iterator[dict[str, Any]]:
    """Problems without end, as conversations of a question and its answer, which ends with the number."""
    draw, seen = random.Random(f"word problems {seed}"), set()
    while True:
        problem, solution = draw.choice(_PROBLEMS)(draw)
        if problem not in seen:
            seen.add(problem)
            yield _conversation(problem, f"{solution}. The answer is {solution.rpartition(' = ')[2]}.")


def everyday_questions(seed: int = 0) -> list[dict[str, Any]]:
    """Questions of all kinds, without answers, in drawn order."""
    questions = [frame.format(subject) for frame, subjects in _EVERYDAY.items() for subject in subjects]
    random.Random(f"everyday {seed}").shuffle(questions)
    return [_conversation(question) for question in questions]


def few(problems: Iterator[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """The next ``count`` of them."""
    return list(islice(problems, count))


def _conversation(question: str, answer: str | None = None) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}]
    return {"messages": messages if answer is None else [*messages, {"role": "assistant", "content": answer}]}
