"""`Rank`: one process that owns an engine and answers many callers at once.

The engine runs in a thread of its own and decides alone when to step: callers hand in requests and
wait, and no remote call is made per step. A prompt that cannot be run gives a `Failure` for that
request. Any other exception of the engine concerns the machine: it fails every request with a
`DeadEngineError`, and the rank refuses work until somebody replaces it.

Ray is not used here: `parallel.groups.start` makes an actor of the class, and tests use the class
as it is.
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
from parallel.ranks.admission import ADMIT_AT_ONCE, AdmissionPolicy, AdmissionQueue, Job
from parallel.ranks.rank_times import RankTimes
from parallel.ranks.requests import Outcome, Request, outcome_of

logger = logging.getLogger(__name__)

ENGINE_THREAD = "engine"  # the name of an engine's threads in the system


class Engine(Protocol):
    """What a rank needs of an engine; `model.engine.engine.Engine` is one.

    All methods but `stats` are called by one thread, one after another.
    """

    @property
    def has_work(self) -> bool:
        """Whether a step would do anything."""
        ...

    def add(
        self, request_id: str, prompt: Prompt, params: SamplingParams, *, own_step: bool = False
    ) -> None:
        """Queue a prompt, or raise `PromptError` for it alone; `own_step` as in `Request`."""
        ...

    def step(self) -> Sequence[tuple[str, Completion | PromptError]]:
        """Do a bounded piece of work; return the requests that finished in it, or failed alone."""
        ...

    def cancel(self, request_id: str) -> None:
        """Forget a request; an unknown one is no error."""
        ...

    def stats(self) -> Mapping[str, float]:
        """Return numbers for reports, such as `steps` (with work so far), also during a step."""
        ...

    def expert_load(self) -> ExpertLoad:
        """Return the tokens that each expert here has computed; called between steps."""
        ...

    def close(self) -> None:
        """Free what the engine holds; no step follows."""
        ...


class DeadEngineError(RuntimeError):
    """The engine of this rank is gone; its requests must be answered elsewhere."""


@dataclass(frozen=True, kw_only=True)
class RankHealth:
    """What a living rank says of itself."""

    busy_s: float  # since the current step began; 0 between steps
    # Numbers of the engine and of `RankTimes`, and `peak_bytes`, the most memory that this process
    # has had resident. Empty until the engine is loaded.
    stats: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class _Cancel:
    concerns: Callable[[Job], bool]


@dataclass(frozen=True, eq=False)
class _AskLoad:
    future: Future[ExpertLoad] = field(default_factory=Future)


class Rank:
    """An engine behind a queue.

    callers --generate--> inbox --> engine's thread: admit, step, answer --> futures --> callers

    The constructor returns at once, and the engine loads in the background: await `ready` to know
    that it worked. The factory runs in the engine's thread, because each thread has its own current
    device.
    """

    def __init__(
        self, engine_factory: Callable[[], Engine], admission: AdmissionPolicy = ADMIT_AT_ONCE
    ) -> None:
        self._factory = engine_factory
        self._inbox: SimpleQueue[Job | _Cancel | _AskLoad | None] = SimpleQueue()  # None: close
        # Only the engine's thread touches these two. A job is in one of them until it is answered.
        self._waiting = AdmissionQueue(admission)
        self._running: dict[str, Job] = {}  # by key: the engine works on these
        self._keys = itertools.count()
        self._lock = threading.Lock()  # no request may enter the inbox once nobody reads it
        self._failure: str | None = None
        self._engine: Engine | None = None
        self._busy_since: float | None = None  # monotonic clock; None between steps
        self._times = RankTimes()
        self._loaded: Future[None] = Future()
        # A caller of `ready` that is cancelled must not cancel this future for the others.
        self._loaded.set_running_or_notify_cancel()
        executor = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._ended = executor.submit(self._run)
        self._ended.add_done_callback(self._fail_all)
        executor.shutdown(wait=False)  # no more work; the thread ends with `_run`

    async def ready(self) -> None:
        """Wait until the engine is loaded; raise what its factory raised."""
        await asyncio.wrap_future(self._loaded)

    async def generate(self, client_id: str, requests: Sequence[Request]) -> list[Outcome]:
        """Answer `requests`, in their order. Cancelling the call cancels its requests.

        Raises DeadEngineError: the engine is dead or died meanwhile; no request was answered.
        """
        jobs = [Job(str(next(self._keys)), client_id, request) for request in requests]
        self._hand_in(*jobs)
        try:
            return await asyncio.gather(*(asyncio.wrap_future(job.future) for job in jobs))
        except asyncio.CancelledError:
            keys = {job.key for job in jobs}
            self._inbox.put(_Cancel(lambda job: job.key in keys))
            raise

    async def health(self) -> RankHealth:
        """Return the state of the engine, during a step too; DeadEngineError if it is dead."""
        if self._failure is not None:
            raise DeadEngineError(self._failure)
        engine, since = self._engine, self._busy_since
        busy_s = 0.0 if since is None else time.monotonic() - since
        if engine is None:
            return RankHealth(busy_s=busy_s)
        own = {"peak_bytes": float(own_peak_bytes())}
        return RankHealth(busy_s=busy_s, stats={**engine.stats(), **self._times.numbers(), **own})

    async def expert_load(self) -> ExpertLoad:
        """Return `Engine.expert_load` after the current step; DeadEngineError if it is dead."""
        query = _AskLoad()
        self._hand_in(query)
        return await asyncio.wrap_future(query.future)

    async def cancel_client(self, client_id: str) -> None:
        """Forget all requests of a client that is gone; calls that await them are cancelled."""
        self._inbox.put(_Cancel(lambda job: job.client_id == client_id))

    async def close(self) -> None:
        """Stop after the current step and fail all unanswered requests; twice is no error."""
        self._inbox.put(None)
        await asyncio.gather(asyncio.wrap_future(self._ended), return_exceptions=True)

    def _hand_in(self, *messages: Job | _AskLoad) -> None:
        """Put into the inbox what expects an answer, unless nobody is there to give it."""
        with self._lock:
            if self._failure is not None:
                raise DeadEngineError(self._failure)
            for message in messages:
                self._inbox.put(message)

    def _run(self) -> None:
        """Run the engine's thread, until it is closed or an exception of the engine ends it."""
        _name_this_thread()
        engine = self._engine = self._factory()
        self._loaded.set_result(None)
        self._times.ready_at = time.monotonic()
        while self._read_inbox(engine):
            self._begin_due_jobs(engine)
            self._step(engine)
        engine.close()

    def _read_inbox(self, engine: Engine) -> bool:
        """Do what the messages say, waiting for some while there is no work; False: close."""
        while True:
            wait_s = 0.0 if engine.has_work else self._waiting.wait_s(self._num_running)
            try:
                message = self._inbox.get(timeout=wait_s)
            except Empty:
                return True
            match message:
                case Job() as job:
                    # From here on the caller cannot cancel the future while this thread sets it.
                    if job.future.set_running_or_notify_cancel():
                        self._waiting.put(job)
                case _Cancel() as cancel:
                    self._cancel(engine, cancel)
                case _AskLoad() as query:
                    self._answer_load(engine, query)
                case None:
                    return False

    def _begin_due_jobs(self, engine: Engine) -> None:
        jobs = self._waiting.remove_due(self._num_running)
        # All are noted before the first is begun: an exception of the engine must fail them all.
        self._running |= {job.key: job for job in jobs}
        for job in jobs:
            try:
                request = job.request
                engine.add(job.key, request.prompt, request.params, own_step=request.own_step)
            except PromptError as error:
                self._answer(job.key, error)

    def _step(self, engine: Engine) -> None:
        self._busy_since = time.monotonic()
        with self._times.step(has_requests=bool(self._running)):
            for key, result in engine.step():
                self._answer(key, result)
        self._busy_since = None

    def _answer(self, key: str, result: Completion | PromptError) -> None:
        self._running.pop(key).future.set_result(outcome_of(result))

    @property
    def _num_running(self) -> int:
        return sum(job.num_sequences for job in self._running.values())

    def _cancel(self, engine: Engine, cancel: _Cancel) -> None:
        held = self._waiting.remove(cancel.concerns)
        running = [job for job in self._running.values() if cancel.concerns(job)]
        for job in running:
            engine.cancel(job.key)
            del self._running[job.key]
        for job in (*held, *running):
            job.future.set_exception(asyncio.CancelledError())

    def _answer_load(self, engine: Engine, query: _AskLoad) -> None:
        if not query.future.set_running_or_notify_cancel():
            return
        try:
            query.future.set_result(engine.expert_load())
        except BaseException as error:  # of the device, as in a step; the rank ends with it
            query.future.set_exception(DeadEngineError(f"{type(error).__name__}: {error}"))
            raise

    def _fail_all(self, ended: Future[None]) -> None:
        """Refuse new requests and fail all that are here, after the engine's thread has ended."""
        cause = ended.exception()
        if cause is not None:
            logger.error("the engine failed", exc_info=cause)
        failure = "the rank was closed" if cause is None else f"{type(cause).__name__}: {cause}"
        with self._lock:
            self._failure = failure  # from here on nothing that expects an answer enters the inbox
        if not self._loaded.done():
            self._loaded.set_exception(cause or DeadEngineError(failure))
        unread = (self._inbox.get() for _ in range(self._inbox.qsize()))
        unread = [message for message in unread if isinstance(message, Job | _AskLoad)]
        unread = [message for message in unread if message.future.set_running_or_notify_cancel()]
        for message in (*self._running.values(), *self._waiting.remove_all(), *unread):
            message.future.set_exception(DeadEngineError(failure))


def _name_this_thread() -> None:
    """Name the thread, and so those that it starts, for tools of the system such as `top -H`.

    Before Python 3.14 the system does not know the names that `threading` gives.
    """
    own_name = Path(f"/proc/self/task/{threading.get_native_id()}/comm")
    with suppress(OSError):  # some sandboxes do not let a thread be named
        own_name.write_text(ENGINE_THREAD)
