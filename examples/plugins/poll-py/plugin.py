"""Polls in the channels of a chat. `poll_open {channel, question, options, seconds?}` opens one, `poll_vote
{poll, option}` votes; the room `channel:{channel}` hears `poll_opened`, `poll_tally` and, when a timer ends
it, `poll_closed`. The rules are in rules.py; this file speaks to the gateway."""

import hashlib
import json

from componentize_py_types import Err
from wit_world import exports
from wit_world.imports import config, invocation, rooms, state, timers
from wit_world.imports.types import Failure_Refused, Payload, Refusal

import rules
from rules import Refused

BACK_END = "backend"


class Describe(exports.Describe):
    def info(self):
        return json.dumps({"name": "poll", "version": "1.0.0", "events": ["poll_*"]})


class Events(exports.Events):
    def handle(self, event):
        try:
            data = rules.first_argument(event.data.args)
            # Without a sender it comes from the tenant's own back end, which may do anything.
            subject = event.sender.subject if event.sender else BACK_END
            if event.name == "poll_open":
                answer = open_poll(data, event.sender, subject)
            elif event.name == "poll_vote":
                answer = vote(data, event.sender, subject)
            else:
                raise Refused("invalid", f"there is no event {event.name} here")
            rooms.reply(payload(answer))
        except Refused as refused:
            # Nothing of what was done takes effect; the client is told why.
            raise Err(Failure_Refused(Refusal(refused.code, refused.message))) from None


class TimerEvents(exports.TimerEvents):
    def fire(self, timer):
        poll = read(timer.name)
        if poll is None:
            return  # Closed already: a timer may come twice.
        state.delete(timer.name)
        publish(poll, "poll_closed", {"poll": timer.name, "tally": rules.tally(poll), "voters": len(poll["votes"])})


def open_poll(data, sender, subject):
    seconds = float(config.get("seconds") or 60)
    poll = rules.opened(data, subject, invocation.now(), seconds)
    member_only(poll, sender)
    # The same id for every attempt at this input.
    name = "poll/" + hashlib.sha256(invocation.id().encode()).hexdigest()[:16]
    write(name, poll)
    timers.set(name, poll["closes_at"] - invocation.now(), "{}")
    asked = {key: poll[key] for key in ("question", "options", "opened_by", "closes_at")}
    publish(poll, "poll_opened", {"poll": name, **asked})
    return {"poll": name, "closes_at": poll["closes_at"]}


def vote(data, sender, subject):
    name = data.get("poll")
    # Two who vote at the same time both read the poll, so one of them runs again and sees the other's vote.
    poll = read(name) if isinstance(name, str) and name.startswith("poll/") else None
    if poll is None:
        raise Refused("not_found", "there is no such poll, or not any more")
    member_only(poll, sender)
    poll = rules.voted(poll, subject, data.get("option"))
    write(name, poll)
    publish(poll, "poll_tally", {"poll": name, "tally": rules.tally(poll)})
    return {"poll": name, "tally": rules.tally(poll)}


def member_only(poll, sender):
    if sender and not rules.may_vote(sender.claims, poll["channel"]):
        raise Refused("forbidden", f"you are not in the channel {poll['channel']}")


def publish(poll, event, data):
    rooms.publish(f"channel:{poll['channel']}", event, payload({"channel": poll["channel"], **data}))


def payload(data):
    """An event's arguments are a JSON array; most events have one."""
    return Payload(json.dumps([data]), [])


def read(key):
    """Values are bytes: here, JSON."""
    value = state.get(key)
    return None if value is None else json.loads(value)


def write(key, value):
    state.put(key, json.dumps(value).encode(), None)
