"""What a poll is, without a gateway: a poll and what was asked in, the poll as it is afterwards out."""

import json
import re
from collections import Counter

QUESTION_CHARS_MAX = 300
OPTIONS_MAX = 10
VOTERS_MAX = 1_000
SECONDS_MAX = 7 * 24 * 60 * 60
ID = re.compile(r"[\w.-]{1,64}", re.ASCII)


class Refused(Exception):
    """Why somebody does not get what was asked for; the code is for programs, the message for people."""

    def __init__(self, code, message):
        super().__init__(message)
        self.code, self.message = code, message


def first_argument(args):
    """The first argument of an event, which is a JSON array of them."""
    arguments = json.loads(args)
    if not arguments or not isinstance(arguments[0], dict):
        raise Refused("invalid", "the first argument must be an object")
    return arguments[0]


def may_vote(claims, channel):
    """Is the bearer of these claims (JSON) in the channel?"""
    channels = json.loads(claims).get("channels")
    return isinstance(channels, list) and channel in map(str, channels)


def opened(data, by, now, seconds_default):
    """A new poll of a channel. Times are milliseconds since the Unix epoch."""
    channel, question, options = data.get("channel"), data.get("question"), data.get("options")
    seconds = data.get("seconds", seconds_default)
    if not is_text(channel, 64) or not ID.fullmatch(channel):
        raise Refused("invalid", "`channel` must be 1 to 64 of A-Z, a-z, 0-9, `_`, `.` and `-`")
    if not is_text(question, QUESTION_CHARS_MAX):
        raise Refused("invalid", f"`question` must be 1 to {QUESTION_CHARS_MAX} characters")
    if not isinstance(options, list) or not 2 <= len(options) <= OPTIONS_MAX or len(set(map(str, options))) < len(options):
        raise Refused("invalid", f"`options` must be 2 to {OPTIONS_MAX} different texts")
    if not all(is_text(option, QUESTION_CHARS_MAX) for option in options):
        raise Refused("invalid", f"an option must be 1 to {QUESTION_CHARS_MAX} characters")
    if not isinstance(seconds, (int, float)) or not 0 < seconds <= SECONDS_MAX:
        raise Refused("invalid", f"`seconds` must be more than 0 and at most {SECONDS_MAX}")
    return {
        "channel": channel,
        "question": question,
        "options": options,
        "opened_by": by,
        "closes_at": now + int(seconds * 1000),
        "votes": {},
    }


def voted(poll, by, option):
    """The poll after somebody has voted, for the first time or otherwise than before."""
    if option not in poll["options"]:
        raise Refused("invalid", f"`option` must be one of {', '.join(poll['options'])}")
    if by not in poll["votes"] and len(poll["votes"]) >= VOTERS_MAX:
        raise Refused("full", f"at most {VOTERS_MAX} can vote")
    return {**poll, "votes": {**poll["votes"], by: option}}


def tally(poll):
    """How many have voted for each option."""
    counts = Counter(poll["votes"].values())
    return {option: counts[option] for option in poll["options"]}


def is_text(value, chars_max):
    return isinstance(value, str) and value.strip() != "" and len(value) <= chars_max
