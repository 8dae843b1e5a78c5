import asyncio
import urllib.request

from isogloss_server import metrics


def told(name: str) -> float:
    value = metrics.REGISTRY.get_sample_value(name)
    assert value is not None, name
    return value


async def test_tasks_are_counted_when_somebody_looks() -> None:
    """isogloss_tasks tells how many tasks the server's loop has now, not how many it had when metrics began."""
    metrics.watch_tasks(asyncio.get_running_loop())
    before = told("isogloss_tasks")
    waiting = [asyncio.create_task(asyncio.Event().wait()) for _ in range(3)]
    assert told("isogloss_tasks") == before + 3
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)
    assert told("isogloss_tasks") == before


async def test_the_process_is_told_from_another_thread() -> None:
    """Whoever reads /metrics learns tasks, resident memory and open files of the process while the loop serves."""
    metrics.watch_tasks(asyncio.get_running_loop())
    port = metrics.serve("127.0.0.1", 0)
    url = f"http://127.0.0.1:{port}/metrics"
    answer = await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=30).read().decode())
    told_names = {line.split()[0] for line in answer.splitlines() if not line.startswith("#")}
    assert {"isogloss_tasks", "process_resident_memory_bytes", "process_open_fds"} <= told_names
