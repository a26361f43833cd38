"""`Rank`: one process that owns an engine and answers many callers at once.

The engine runs in a thread of its own and decides alone when to step: callers hand in requests and
wait, and no remote call happens per step. A prompt that cannot be run is that request's `Failure`;
any other exception of the engine is the machine's, fails every request as `DeadEngineError`, and
leaves a rank that refuses work until somebody replaces it.

There is no Ray in here: `parallel.groups.start` makes an actor of the class, tests use it as it is.
"""

import asyncio
import itertools
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Protocol

from model.engine.sequence import Completion, SamplingParams
from model.inputs.prompt import Prompt, PromptError
from model.malloc import own_peak_bytes
from parallel.experts.load import ExpertLoad
from parallel.ranks.rank_times import RankTimes

logger = logging.getLogger(__name__)

ENGINE_THREAD = "engine"  # what the system calls a thread of an engine, as in `top -H`


class Engine(Protocol):
    """What a rank needs of an engine; `model.engine.engine.Engine` is one."""

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        ...

    def add(self, request_id: str, prompt: Prompt, params: SamplingParams) -> None:
        """Queue a prompt, or raise `PromptError` for it alone."""
        ...

    def step(self) -> Sequence[tuple[str, Completion | PromptError]]:
        """Do a bounded piece of work; return what finished in it, or failed alone."""
        ...

    def cancel(self, request_id: str) -> None:
        """Forget a request; unknown ones are no error."""
        ...

    def stats(self) -> Mapping[str, float]:
        """Numbers for reports, such as `steps` with work so far; read while one may be running."""
        ...

    def expert_load(self) -> ExpertLoad:
        """Tokens that each expert here has computed; called between steps."""
        ...

    def close(self) -> None:
        """End; no step follows."""
        ...


class DeadEngineError(RuntimeError):
    """The engine of this rank is gone; whatever it was doing must be done elsewhere."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """One prompt to answer; the id is for people who read logs and need not be unique."""

    request_id: str
    prompt: Prompt
    params: SamplingParams

    @property
    def num_tokens(self) -> int:
        """The work it may be: visual and text tokens of the prompt, and all it may generate."""
        return len(self.prompt.token_ids) + self.params.n * self.params.max_tokens


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why one prompt got no completion; the others are not affected."""

    code: str  # as `PromptError.code`
    message: str


Outcome = Completion | Failure


@dataclass(frozen=True, kw_only=True)
class Vitals:
    """What a rank says of itself while it lives."""

    busy_s: float  # since the engine was last seen between two steps
    # Of the engine and of `RankTimes`, and `peak_bytes`, the most memory that it has had resident.
    stats: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class AdmissionPolicy:
    """What requests wait for, since a step takes hardly longer for some than for one.

    They are held back until enough are unanswered, with those that the engine works on, or the
    first has waited long enough. The default holds nothing back.
    """

    num_sequences: int = 1  # that are enough
    max_wait_s: float = 0.0


@dataclass(frozen=True, eq=False)
class _Job:
    key: str  # unique in this rank, whatever callers repeat
    client_id: str
    request: Request
    future: Future[Outcome] = field(default_factory=Future)


@dataclass(frozen=True)
class _Cancel:
    keys: frozenset[str] = frozenset()
    client_id: str | None = None  # all jobs of this client

    def concerns(self, job: _Job) -> bool:
        return job.key in self.keys or job.client_id == self.client_id


@dataclass(frozen=True, eq=False)
class _AskLoad:
    future: Future[ExpertLoad] = field(default_factory=Future)


class _Close:
    pass


class Rank:
    """An engine behind a queue.

    callers --generate--> inbox --> engine thread: take, add, step ... --> futures --> callers

    Construction returns at once and loads in the background: await `ready` to know that it worked.

    Args:
        engine_factory: makes the engine, in its thread.
        company: what requests wait for before they are begun.
    """

    def __init__(
        self, engine_factory: Callable[[], Engine], company: AdmissionPolicy = AdmissionPolicy()
    ) -> None:
        self._factory = engine_factory
        self._company = company
        self._inbox: SimpleQueue[_Job | _Cancel | _AskLoad | _Close] = SimpleQueue()
        self._jobs: dict[str, _Job] = {}  # unanswered; touched by the engine's thread alone
        self._held: list[_Job] = []  # of them, those that the engine does not know yet
        self._begin_at = 0.0  # when it will, on the monotonic clock
        self._numbers = itertools.count()
        self._lock = threading.Lock()  # between the end of the engine and new requests
        self._failure: str | None = None
        self._engine: Engine | None = None
        self._busy_since: float | None = None  # None while it waits for requests
        self._times = RankTimes()
        self._loaded: Future[None] = Future()
        self._loaded.set_running_or_notify_cancel()
        executor = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._ended = executor.submit(self._run)
        self._ended.add_done_callback(self._fail_all)
        executor.shutdown(wait=False)  # takes nothing more; its thread goes when the loop ends

    async def ready(self) -> None:
        """Wait until the engine is loaded; raise what its factory raised."""
        await asyncio.wrap_future(self._loaded)

    async def generate(self, client_id: str, requests: Sequence[Request]) -> list[Outcome]:
        """Answer `requests`, in their order.

        A caller that is cancelled takes its requests along.

        Raises:
            DeadEngineError: the engine is dead or died meanwhile; nothing was answered.
        """
        jobs = [_Job(str(next(self._numbers)), client_id, request) for request in requests]
        self._hand_in(*jobs)
        try:
            return await asyncio.gather(*(asyncio.wrap_future(job.future) for job in jobs))
        except asyncio.CancelledError:
            self._inbox.put(_Cancel(keys=frozenset(job.key for job in jobs)))
            raise

    async def vitals(self) -> Vitals:
        """How the engine is.

        Raises:
            DeadEngineError: it is dead.
        """
        if self._failure is not None:
            raise DeadEngineError(self._failure)
        engine, since = self._engine, self._busy_since
        busy_s = 0.0 if since is None else time.monotonic() - since
        if engine is None:
            return Vitals(busy_s=busy_s)
        own = {"peak_bytes": float(own_peak_bytes())}
        return Vitals(busy_s=busy_s, stats={**engine.stats(), **self._times.numbers(), **own})

    async def expert_load(self) -> ExpertLoad:
        """As `Engine.expert_load`, once the current step is over.

        Raises:
            DeadEngineError: the engine is dead or died meanwhile.
        """
        ask = _AskLoad()
        self._hand_in(ask)
        return await asyncio.wrap_future(ask.future)

    async def cancel_client(self, client_id: str) -> None:
        """Forget all requests of a client that is gone; whoever awaits them is cancelled."""
        self._inbox.put(_Cancel(client_id=client_id))

    async def close(self) -> None:
        """Stop after the current step and fail what is in flight; closing twice is no error."""
        self._inbox.put(_Close())
        await asyncio.gather(asyncio.wrap_future(self._ended), return_exceptions=True)

    def _hand_in(self, *wishes: _Job | _AskLoad) -> None:
        """Queue what expects an answer, unless nobody is there to give it."""
        with self._lock:
            if self._failure is not None:
                raise DeadEngineError(self._failure)
            for wish in wishes:
                self._inbox.put(wish)

    def _run(self) -> None:
        """The engine thread: ends when told to, or with the exception that broke the engine."""
        own_name = Path(f"/proc/self/task/{threading.get_native_id()}/comm")
        with suppress(OSError):  # some sandboxes do not let a thread be named
            own_name.write_text(ENGINE_THREAD)  # those that this one starts have it too
        # Built here because each thread has its own current device.
        engine = self._engine = self._factory()
        self._loaded.set_result(None)
        self._times.ready_at = time.monotonic()
        while self._take(engine):
            self._busy_since = time.monotonic()
            with self._times.step(has_requests=len(self._jobs) > len(self._held)):
                for key, outcome in engine.step():
                    self._jobs.pop(key).future.set_result(_outcome(outcome))
            self._busy_since = None
        engine.close()

    def _take(self, engine: Engine) -> bool:
        """Do what the inbox says, waiting there while the engine is idle; False is the end."""
        while True:
            wait_s = 0.0 if engine.has_work else self._patience_left_s()
            try:
                wish = self._inbox.get(timeout=wait_s)
            except Empty:
                break
            match wish:
                case _Job() as job:
                    self._hold(job)
                case _Cancel() as cancel:
                    self._cancel(engine, cancel)
                case _AskLoad() as ask:
                    self._tell_load(engine, ask)
                case _Close():
                    return False
        if self._patience_left_s() == 0:
            for job in self._held:
                self._begin(engine, job)
            self._held.clear()
        return True

    def _patience_left_s(self) -> float | None:
        """How much longer requests are held; None where there are none."""
        if not self._held:
            return None
        num_sequences = sum(job.request.params.n for job in self._jobs.values())
        if num_sequences >= self._company.num_sequences:
            return 0.0
        return max(0.0, self._begin_at - time.monotonic())

    def _hold(self, job: _Job) -> None:
        # From here on the caller cannot cancel the future behind this thread's back.
        if not job.future.set_running_or_notify_cancel():
            return
        if not self._held:
            self._begin_at = time.monotonic() + self._company.max_wait_s
        self._jobs[job.key] = job
        self._held.append(job)

    def _begin(self, engine: Engine, job: _Job) -> None:
        try:
            engine.add(job.key, job.request.prompt, job.request.params)
        except PromptError as error:
            del self._jobs[job.key]
            job.future.set_result(_outcome(error))

    def _cancel(self, engine: Engine, cancel: _Cancel) -> None:
        self._held = [job for job in self._held if not cancel.concerns(job)]
        for job in [job for job in self._jobs.values() if cancel.concerns(job)]:
            engine.cancel(job.key)
            del self._jobs[job.key]
            job.future.set_exception(asyncio.CancelledError())

    def _tell_load(self, engine: Engine, ask: _AskLoad) -> None:
        if not ask.future.set_running_or_notify_cancel():
            return
        try:
            ask.future.set_result(engine.expert_load())
        except BaseException as error:  # of the device; the engine ends with it
            ask.future.set_exception(DeadEngineError(f"{type(error).__name__}: {error}"))
            raise

    def _fail_all(self, ended: Future[None]) -> None:
        """Refuse what comes and fail what is here: the engine thread's loop is over."""
        cause = ended.exception()
        if cause is not None:
            logger.error("the engine failed", exc_info=cause)
        failure = "the rank was closed" if cause is None else f"{type(cause).__name__}: {cause}"
        with self._lock:
            self._failure = failure
        if not self._loaded.done():
            self._loaded.set_exception(cause or DeadEngineError(failure))
        waiting = (self._inbox.get() for _ in range(self._inbox.qsize()))
        queued = [wish for wish in waiting if isinstance(wish, _Job | _AskLoad)]
        queued = [wish for wish in queued if wish.future.set_running_or_notify_cancel()]
        for wish in (*self._jobs.values(), *queued):
            wish.future.set_exception(DeadEngineError(failure))


def _outcome(result: Completion | PromptError) -> Outcome:
    """What crosses to the caller: an exception's code and message in place of it."""
    if isinstance(result, PromptError):
        return Failure(code=result.code, message=result.message)
    return result
