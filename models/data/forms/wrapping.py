"""Words around a query that ask for nothing else: an instruction, thanks, a lead-in, or a few before or behind it."""

from __future__ import annotations

import random
from collections.abc import Mapping

from bakeout.models.data.forms.kinds import Affix, Use, Wrapping

# Where a wording has no `{query}`, it stands behind the query.
_WORDINGS: Mapping[Affix | Wrapping, Mapping[Use, tuple[str, ...]]] = {
    "suffix": {
        "widening": (
            *(" Thanks.", " Please.", " Answer briefly.", " Think carefully.", " ok", "!!", " (important)"),
            *(" Be quick.", " right?", " Go ahead.", " :)", " - cheers"),
        ),
        "testing": (
            *(" Thank you.", " Quickly!", " Be brief.", " I need this today.", " hm", "??", " [urgent]"),
            *(" Take your time.", " yes?", " Your turn.", " ;-)", " / regards"),
        ),
    },
    "prefix": {
        "widening": (
            *("Please: {query}", "Hello. {query}", "Question: {query}", "Now, {query}", "I wonder: {query}"),
            *("> {query}", "Well, {query}", "Next: {query}", "Dear assistant, {query}", "1. {query}", "Also: {query}"),
            "My request: {query}",
        ),
        "testing": (
            *("Kindly: {query}", "Hi! {query}", "Task: {query}", "So, {query}", "Tell me: {query}", "* {query}"),
            *("Listen, {query}", "Then: {query}", "Good day, {query}", "a) {query}", "Moreover: {query}"),
            "For you: {query}",
        ),
    },
    "instruction": {
        "widening": (
            " Answer in one sentence.",
            " Explain your answer.",
            " Give only the final answer.",
            "\n\nThink about it step by step.",
            "\nKeep the answer under fifty words.",
            " Please be as detailed as possible.",
            "\n\nFormat the answer as a list.",
            "Read the following carefully and answer it. {query}",
            "Answer the question below as well as you can.\n\n{query}",
            "Give a short and clear answer to this: {query}",
            "You must answer this completely. {query}",
            "Follow the request below. Do not add anything else.\n{query}",
            " Use simple language.",
            "\nDouble-check the result before you reply.",
        ),
        "testing": (
            " Answer step by step.",
            " Reply with one short paragraph.",
            " Justify what you say.",
            "\n\nDo not explain, just answer.",
            "\nLet us work through this slowly.",
            " Write the answer on the last line.",
            "\n\nUse bullet points.",
            "Please respond to the request that follows. {query}",
            "Below is a task. Write a response that completes it.\n\n{query}",
            "Take a deep breath and solve this: {query}",
            "Respond briefly and correctly. {query}",
            "Handle the next message as an expert would.\n{query}",
            " Make it easy to understand.",
            "\nBe sure that everything in your answer is correct.",
        ),
    },
    "thanks": {
        "widening": (
            " Thanks!",
            " Many thanks in advance.",
            " Thanks a lot for your help.",
            "\n\nThank you so much!",
            " Thx",
            " I really appreciate it.",
            "\nThanks, you are a great help.",
            " Cheers!",
            " Thank you kindly.",
            "\n\nThanks in advance,\nAlex",
            " That would help me a lot, thanks.",
            " Thanks and have a nice day.",
        ),
        "testing": (
            " Thank you!",
            " Thank you in advance.",
            " Much appreciated.",
            "\n\nThanks for taking the time!",
            " ty",
            " I am grateful for any help.",
            "\nThank you, that is very kind of you.",
            " Thanks again!",
            " Thanking you in anticipation.",
            "\n\nBest wishes and thanks\nMaria",
            " You would do me a great favour, thank you.",
            " Thank you and good evening.",
        ),
    },
    "lead_in": {
        "widening": (
            "Hi there, I have a question. {query}",
            "Can you help me with this? {query}",
            "Hello! Hope you are well. {query}",
            "I was thinking about something: {query}",
            "My friend asked me this and I had no idea. {query}",
            "Here is what I would like to know: {query}",
            "Okay, next one. {query}",
            "Sorry to bother you again. {query}",
            "Quick question: {query}",
            "I have been stuck on this for a while. {query}",
            "Maybe you know this.\n\n{query}",
            "Good morning. Could you look at this for me?\n{query}",
        ),
        "testing": (
            "Hey, something came to my mind. {query}",
            "I was wondering: {query}",
            "Could you lend me a hand? {query}",
            "Good afternoon! Nice to talk to you. {query}",
            "My sister wants to know this. {query}",
            "What I am interested in is this: {query}",
            "Alright, one more. {query}",
            "Excuse me for asking. {query}",
            "This is probably easy for you: {query}",
            "I need some assistance with the following. {query}",
            "I hope that you can answer this.\n\n{query}",
            "Dear assistant, please have a look at my question.\n{query}",
        ),
    },
}


def wrapped(query: str, kind: Affix | Wrapping, use: Use, draw: random.Random) -> str:
    """The query with words of a wording around it."""
    wording = draw.choice(_WORDINGS[kind][use])
    return wording.replace("{query}", query) if "{query}" in wording else query + wording
