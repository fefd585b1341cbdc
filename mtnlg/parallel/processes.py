"""One job of several processes: who is first, saying the same, and stopping together. In a process on its own all of it is free.

Words go through the key-value store of jax's coordinator, not over the devices: process 0 may prepare a corpus for hours while the
others wait, and a collective would give up. Every process makes the same calls in the same order, in its main thread.
"""

import contextlib
import itertools
import json
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from jax._src.distributed import global_state  # the store has no public name; Orbax takes it from here too
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mtnlg.core import errors
from mtnlg.core.errors import ConfigError, MtnlgError, TemporaryFailure

_PATIENCE_MS = 7 * 24 * 3600 * 1000  # a process that dies ends the waiting of the others, by jax's heartbeat
_SLICE_MS = 2_000  # inside one wait no signal is heard
_GOODBYE_MS = 60_000
_SILENT_SECS = 5
_calls = itertools.count()


def join(coordinator: str | None, num_processes: int | None, process_id: int | None, secs: int, heartbeat_secs: int) -> None:
    """Becomes one of several processes and says which; the arguments as in `launch.processes.Job`. Call it before jax has devices.

    heartbeat_secs: who is silent for so long is lost, which ends the others.
    Raises TemporaryFailure when the others are not there after `secs`, ConfigError when no cluster is found.
    """
    # jax's own SIGTERM handler would swallow the signal until training looks for it; `Agreement` takes its place.
    jax.config.update("jax_enable_preemption_service", False)
    told = {"cluster_detection_method": "deactivate"} if coordinator else {}
    where = coordinator or "the cluster's coordinator"
    if coordinator and process_id == 0:
        _require_free(int(coordinator.rpartition(":")[2]), where)
    # When its own time is up jax aborts the process. So it has longer, and its thread is left behind.
    times = {"initialization_timeout": secs + 600, "heartbeat_timeout_seconds": heartbeat_secs}
    started = ThreadPoolExecutor(1).submit(jax.distributed.initialize, coordinator, num_processes, process_id, **times, **told)
    try:
        try:
            started.result(min(secs, _SILENT_SECS))
        except TimeoutError:
            print(f"waiting at {where} for the other processes of the job, for up to {secs} s", flush=True)
            started.result(max(secs - _SILENT_SECS, 0))
    except TimeoutError:
        cure = "starting every process, with this address reachable from each, or a longer MTNLG_JOIN_SECS"
        raise TemporaryFailure(f"the processes of the job did not meet within {secs} s", where, cure) from None
    except ValueError as error:
        cure = "MTNLG_COORDINATOR, MTNLG_NUM_PROCESSES and MTNLG_PROCESS_ID"
        raise ConfigError(f"no cluster is found: {error}", "MTNLG_DISTRIBUTED=1", cure) from error
    except RuntimeError as error:
        raise TemporaryFailure(f"the job cannot start: {str(error).splitlines()[0]}", where, "another port") from error
    print(
        f"process {jax.process_index()} of {jax.process_count()} on {socket.gethostname()}: "
        f"{jax.local_device_count()} of {jax.device_count()} {jax.default_backend()} devices",
        flush=True,
    )


def _require_free(port: int, where: str) -> None:
    """Raises TemporaryFailure for a port in use, of which jax would die without a word, or nearly so."""
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("", port))
    except OSError as error:
        raise TemporaryFailure(f"the job cannot start: {error.strerror}", where, "another port") from None


def is_first() -> bool:
    """Whether this process writes files and talks to people."""
    return jax.process_index() == 0


def by_first(action: Callable):
    """What `action` gives in process 0, in every process; a JSON value. Nobody else runs it. An MtnlgError is raised everywhere."""
    if jax.process_count() == 1:
        return action()
    store, key = global_state.client, f"mtnlg/{next(_calls)}"
    if is_first():
        try:
            answer = {"value": action()}
        except MtnlgError as error:
            answer = _told(error)
        store.key_value_set(key, json.dumps(answer))
    else:
        answer = json.loads(_wait_for(key))
    if "error" in answer:
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # somebody is late: what went wrong matters more
            store.wait_at_barrier(key, _GOODBYE_MS)  # the store ends with process 0: everybody has read when it goes on
        raise _retold(answer)
    return answer["value"]


def raise_together(error: BaseException | None) -> None:
    """Raises in every process what went wrong in the first that has an error; what is no MtnlgError is raised where it is alone."""
    if error is not None and not (isinstance(error, MtnlgError) and jax.process_count() > 1):
        raise error
    if jax.process_count() == 1:
        return
    key = f"mtnlg/{next(_calls)}"
    global_state.client.key_value_set(f"{key}/{jax.process_index()}", json.dumps(error and _told(error)))

    def first() -> None:
        for told in [json.loads(_wait_for(f"{key}/{process}")) for process in range(jax.process_count())]:
            if told is not None:
                raise _retold(told)

    by_first(first)


def _told(error: MtnlgError) -> dict:
    return {"error": type(error).__name__, "said": [error.what, error.where, error.cure]}


def _retold(told: dict) -> MtnlgError:
    return getattr(errors, told["error"])(*told["said"])


def _wait_for(key: str) -> str:
    while True:
        try:
            return global_state.client.blocking_key_value_get(key, _SLICE_MS)
        except jax.errors.JaxRuntimeError as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                raise


def require_same(said: dict[str, str], cure: str) -> None:
    """Raises ConfigError in every process, naming what differs and where, unless all of them say the same."""
    if jax.process_count() == 1:
        return
    store, key = global_state.client, f"mtnlg/{next(_calls)}"
    store.key_value_set(f"{key}/{jax.process_index()}", json.dumps(said))
    store.wait_at_barrier(key, _PATIENCE_MS)

    def compare() -> None:
        told = {int(name.rpartition("/")[2]): json.loads(text) for name, text in store.key_value_dir_get(key)}
        if found := differences(told):
            more = f", and {len(found) - 3} more differences" if len(found) > 3 else ""
            raise ConfigError(f"the processes of the job differ: {'; '.join(found[:3])}{more}", f"{len(told)} processes", cure)

    by_first(compare)


def gathered(said) -> list:
    """What every process says, a JSON value, in each of them; in their order."""
    if jax.process_count() == 1:
        return [said]
    store, key = global_state.client, f"mtnlg/{next(_calls)}"
    store.key_value_set(f"{key}/{jax.process_index()}", json.dumps(said))
    told = [json.loads(_wait_for(f"{key}/{process}")) for process in range(jax.process_count())]
    store.wait_at_barrier(key, _PATIENCE_MS)  # everybody has read
    store.key_value_delete(f"{key}/{jax.process_index()}")
    return told


def differences(told: dict[int, dict[str, str]]) -> list[str]:
    """What each process says otherwise than process 0."""
    first = told[0]
    return [
        f"{name} is {said.get(name)} in process {process} and {first.get(name)} in process 0"
        for process, said in sorted(told.items())
        for name in first | said
        if said.get(name) != first.get(name)
    ]


class Board:
    """Numbers that processes write down for process 0 to read later; nobody waits for anybody.

    subject: no two boards have the same.
    """

    def __init__(self, subject: str):
        self._subject = subject

    def write(self, page: int, secs: float) -> None:
        """Once for each page in each process."""
        global_state.client.key_value_set(f"mtnlg/{self._subject}/{page}/{jax.process_index()}", f"{secs} {socket.gethostname()}")

    def take(self, page: int) -> dict[int, tuple[float, str]]:
        """{process: (its number, its host)} of a page, as far as they are there, in process 0. The page is gone then."""
        store, folder = global_state.client, f"mtnlg/{self._subject}/{page}/"
        found = {int(key.rpartition("/")[2]): text.split(" ", 1) for key, text in store.key_value_dir_get(folder)}
        store.key_value_delete(folder)
        return {process: (float(secs), host) for process, (secs, host) in found.items()}


class Agreement:
    """Whether any process has said yes, so that all stop after the same step.

    In a job the answer is that of the call before: to read this one's at once would make the devices wait for the host.
    """

    def __init__(self):
        mesh = Mesh(np.asarray(jax.devices()), ("all",))
        self._each = NamedSharding(mesh, P("all"))
        self._any = jax.jit(jnp.any, out_shardings=NamedSharding(mesh, P()))
        self._before = False

    def agree(self, yes: bool) -> bool:
        """Call it in every process, as often in each."""
        if jax.process_count() == 1:
            return yes
        answer, self._before = self._before, self._vote(yes)
        return bool(answer)

    def at_once(self, yes: bool) -> bool:
        """The answer to this very call, for which the devices wait."""
        return yes if jax.process_count() == 1 else bool(self._vote(yes))

    def _vote(self, yes: bool) -> jax.Array:
        return self._any(jax.make_array_from_callback((self._each.mesh.size,), self._each, lambda _: np.array([yes])))
