"""Pasted material beside a query: code, checks, tables, logs, letters. It has nothing to do with what is asked."""

from __future__ import annotations

import random
from collections.abc import Mapping

from bakeout.models.data.forms.kinds import Use

# Half of it is code and what code is held to, which is what people paste most.
_MATERIALS: Mapping[Use, tuple[str, ...]] = {
    "widening": (
        "assert double(4) == 8\nassert double(-1) == -2",
        'assert first_word("green apple") == "green"\nassert first_word("") == ""\nassert first_word("one") == "one"',
        "assert pairs([1, 2, 3, 4]) == [(1, 2), (3, 4)]\nassert pairs([]) == []\nassert pairs([5, 6]) == [(5, 6)]",
        "assert is_even(10) == True\nassert is_even(7) == False\nassert is_even(0) == True",
        "assert overlap((1, 2, 3), (2, 3, 4)) == (2, 3)\nassert overlap((7,), (8,)) == ()",
        "assert shout('hello') == 'HELLO!'\nassert shout('a b') == 'A B!'\nassert shout('') == '!'",
        'def greet(name):\n    """Return a greeting."""\n    return f"Hello, {name}!"',
        "class Lamp:\n    def __init__(self):\n        self.on = False\n\n    def press(self):\n        self.on = True",
        "for (let i = 0; i < rows.length; i++) {\n  console.log(rows[i].title);\n}",
        "Input: 3 5\nOutput: 8\n\nInput: 10 -2\nOutput: 8",
        ">>> clamp(12, 0, 10)\n10\n>>> clamp(-3, 0, 10)\n0",
        "SELECT name, city FROM members WHERE joined > '2021-01-01' ORDER BY name;",
        '{"id": 17, "title": "Blue chair", "tags": ["wood", "garden"], "stock": 4}',
        "date,place,visitors\n2023-05-01,museum,412\n2023-05-02,museum,388\n2023-05-03,park,951",
        "09:14:02 INFO  server started on port 8080\n09:14:07 WARN  slow request: /search took 2.4 s\n"
        "09:15:30 ERROR connection closed by peer",
        "Dear Mrs. Lopez,\nthank you for your letter of 12 June. We have sent a new key to your address and hope that "
        "it arrives soon.\nKind regards\nThe office",
        "The old mill stands at the end of the village. For two hundred years it ground corn for the farmers of the "
        "valley, until the river was moved to make room for the railway.",
        "- milk, eggs, flour\n- call the plumber\n- return the library books\n- tickets for Saturday",
        "theme: dark\nlanguage: en\nwindow:\n  width: 1280\n  height: 800",
        "| room | floor | seats |\n| --- | --- | --- |\n| Elm | 1 | 12 |\n| Oak | 2 | 30 |\n| Ash | 2 | 8 |",
    ),
    "testing": (
        "assert triple(2) == 6\nassert triple(0) == 0\nassert triple(-5) == -15",
        'assert last_letter("stone") == "e"\nassert last_letter("x") == "x"',
        "assert flatten([[1], [2, 3]]) == [1, 2, 3]\nassert flatten([]) == []\nassert flatten([[], [4]]) == [4]",
        "assert has_digit('room 5') is True\nassert has_digit('hall') is False",
        "assert swap((1, 2)) == (2, 1)\nassert swap(('a', 'b')) == ('b', 'a')\nassert swap((0, 0)) == (0, 0)",
        "assert initials('Grace Hopper') == 'GH'\nassert initials('Ada Lovelace King') == 'ALK'",
        "def area(width, height):\n    # both in metres\n    return width * height\n\nprint(area(2, 3))",
        "import random\n\ncolours = ['red', 'blue']\nprint(random.choice(colours))",
        "public int size() {\n    return this.items.size();\n}",
        "Example 1:\n  in  -> [4, 1, 3]\n  out -> [1, 3, 4]\nExample 2:\n  in  -> []\n  out -> []",
        "$ ls -l\n-rw-r--r-- 1 ann staff  220 notes.txt\n-rw-r--r-- 1 ann staff 8412 photo.png",
        "UPDATE orders SET status = 'sent' WHERE id = 512;",
        "<ul>\n  <li>Home</li>\n  <li>News</li>\n  <li>Contact</li>\n</ul>",
        "name;age;team\nIda;34;north\nTom;29;south\nRaj;41;north",
        "Traceback (most recent call last):\n  File \"run.py\", line 12, in <module>\n    main()\nKeyError: 'address'",
        "Hi all,\nthe meeting on Monday starts half an hour later. Please bring the list of last year's guests.\nBest\n"
        "Jo",
        "Whales breathe air. Some of them dive for more than an hour, and before they do they fill their blood with "
        "oxygen. When they come up again, the breath of the largest stands nine metres high.",
        "1. Open the lid.\n2. Take out the filter.\n3. Rinse it under warm water.\n4. Let it dry for a day.",
        "https://example.org/gallery/41\nhttps://example.org/about",
        "[section]\nenabled = true\nretries = 3\npath = /srv/data",
    ),
}
_WORDINGS: Mapping[Use, tuple[str, ...]] = {
    "widening": (
        "{query}\n{material}",
        "{query}\n\n```\n{material}\n```",
        "{query}\n\nHere is what I have so far:\n\n{material}",
        "{query}\n\nAttachment:\n{material}",
        "{query}\nThe following has to hold:\n{material}",
        "{query}\n\nSome examples:\n{material}",
        "{query}\n\n---\n{material}\n---",
        "{query} I have put my file below.\n\n<file>\n{material}\n</file>",
        "{query}\nUse this if it helps:\n{material}",
        "```\n{material}\n```\n\n{query}",
        "This is what I am working on:\n\n{material}\n\n{query}",
        "Context:\n{material}\n\nQuestion: {query}",
        "{material}\n\n{query}",
        "I was looking at this.\n{material}\nNow something else: {query}",
    ),
    "testing": (
        "{query}\n\n{material}",
        "{query}\n\n```python\n{material}\n```",
        "{query}\nFor reference:\n{material}",
        "{query}\n\n[pasted text]\n{material}",
        "{query} See below.\n\n{material}",
        "{query}\n\nIt will be checked with this.\n{material}",
        "{query}\n\nExpected:\n{material}",
        "{query}\n\n<notes>\n{material}\n</notes>",
        "Look at this first.\n{material}\n\n{query}",
        "<document>\n{material}\n</document>\n\n{query}",
        "Given the material, answer the request.\n\nMaterial:\n{material}\n\nRequest: {query}",
        "My clipboard:\n```\n{material}\n```\n{query}",
    ),
}


def with_attachment(query: str, use: Use, draw: random.Random) -> str:
    """The query with a piece of pasted material behind it or, less often, in front of it."""
    wording, material = draw.choice(_WORDINGS[use]), draw.choice(_MATERIALS[use])
    return wording.replace("{material}", material).replace("{query}", query)
