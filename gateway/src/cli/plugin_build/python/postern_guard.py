"""Stands between the gateway and a plugin in Python: what the plugin raises without meaning to
becomes a line in the tenant's log that says where, and what Python takes for granted (time, chance,
print) comes from the gateway."""

import builtins
import os
import random
import sys
import time

from componentize_py_types import Err
from wit_world.imports import invocation, log
from wit_world.imports.types import Failure_Fatal, Failure_Retry

FRAMES_TOLD = 6
NOT_THE_PLUGINS = {"postern_guard", "postern_entry", "wit_world", "importlib"}
BUILT_WITH = {"time": time.time, "time_ns": time.time_ns}
started = False


def guarded(plugin, name, functions, can_fail):
    """The class that answers for one interface: the plugin's own, each function guarded."""
    its = getattr(plugin, name, None)
    for function in functions:
        if not callable(getattr(its, function, None)):
            raise TypeError(
                f"the module {plugin.__name__} has no `class {name}` with `def {function}(self, …)`, which its world needs"
            )
    return type(name, (its,), {function: guard(getattr(its, function), can_fail) for function in functions})


def guard(function, can_fail):
    def call(self, *args):
        begin()
        try:
            return function(self, *args)
        except Exception as error:
            if isinstance(error, Err) and not is_host_error(error.value):
                raise  # An answer of the contract.
            what, frames = describe(error)
            log.log(log.Level.ERROR, "\n  at ".join([what, *frames]))
            if not can_fail:
                raise
            if isinstance(error, Err) and type(error.value).__name__ == "HostError_Unavailable":
                raise Err(Failure_Retry("the gateway cannot reach the state now")) from None
            raise Err(Failure_Fatal(f"{what} ({frames[0]})" if frames else what)) from None

    return call


def is_host_error(value):
    return type(value).__name__.startswith("HostError_")


def describe(error):
    """What it is, and the plugin's own lines, innermost first. Sources are not looked for: there are no files."""
    if isinstance(error, Err):
        said = getattr(error.value, "value", None)
        kind = type(error.value).__name__.removeprefix("HostError_").lower()
        what = f"the gateway did not take a call: {kind}" + ("" if said is None else f" ({said})")
    else:
        text = "call_limits.memory_bytes" if isinstance(error, MemoryError) else str(error)
        what = f"{type(error).__name__}: {text}"
    frames = []
    trace = error.__traceback__
    while trace is not None:
        code, module = trace.tb_frame.f_code, trace.tb_frame.f_globals.get("__name__", "")
        if module.partition(".")[0] not in NOT_THE_PLUGINS:
            frames.append(f"{code.co_name} {code.co_filename.rsplit('/', 1)[-1]}:{trace.tb_lineno}")
        trace = trace.tb_next
    return what, frames[::-1][:FRAMES_TOLD]


def begin():
    """Before every call: an instance may be used again. While the component is built there is no gateway."""
    global started
    if not started:
        started = True
        sys.stdout, sys.stderr = Lines(log.Level.INFO), Lines(log.Level.ERROR)
        sys.meta_path[:] = [finder for finder in sys.meta_path if finder.__name__ != "PathFinder"] + [TooLate]
        builtins.open = missing("open", "a plugin has no files")
        time.sleep = missing("time.sleep", "an instance lives for one call; timers.set outlives it")
        os.urandom = missing("os.urandom", "nothing in a plugin is secret; invocation.id() is unique")
    # Other numbers for other inputs, the same for every attempt at one.
    random.seed(invocation.id())


def missing(what, instead):
    def call(*_, **__):
        raise NotImplementedError(f"there is no {what} here: {instead}")

    return call


class TooLate:
    """Modules are packed into the component with all that was imported while it was built; there are no others."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        raise ModuleNotFoundError(
            f"{name} was not imported while the component was built: import it at the top of the file, "
            "unless it speaks to an operating system (sockets, threads, processes): there is none here"
        )


class Lines:
    """What is printed, as lines in the tenant's log."""

    def __init__(self, level):
        self.level, self.line = level, ""

    def write(self, text):
        *whole, self.line = (self.line + text).split("\n")
        for line in whole:
            log.log(self.level, line)
        return len(text)

    def flush(self):
        pass


def now():
    return invocation.now() / 1000 if started else BUILT_WITH["time"]()


def now_ns():
    return invocation.now() * 1_000_000 if started else BUILT_WITH["time_ns"]()


time.time, time.time_ns = now, now_ns
