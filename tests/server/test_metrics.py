import asyncio
import urllib.request

from isogloss_server import metrics


def value_of(name: str) -> float:
    value = metrics.REGISTRY.get_sample_value(name)
    assert value is not None, name
    return value


async def test_tasks_are_counted_at_each_scrape() -> None:
    """isogloss_tasks is the present number of tasks of the server's loop."""
    metrics.watch_tasks(asyncio.get_running_loop())
    before = value_of("isogloss_tasks")
    waiting = [asyncio.create_task(asyncio.Event().wait()) for _ in range(3)]
    assert value_of("isogloss_tasks") == before + 3
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)
    assert value_of("isogloss_tasks") == before


async def test_metrics_are_served_on_another_thread() -> None:
    """/metrics has tasks, resident memory and open files of the process while the loop serves."""
    metrics.watch_tasks(asyncio.get_running_loop())
    port = metrics.serve("127.0.0.1", 0)
    url = f"http://127.0.0.1:{port}/metrics"
    response = await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=30).read().decode())
    names = {line.split()[0] for line in response.splitlines() if not line.startswith("#")}
    assert {"isogloss_tasks", "process_resident_memory_bytes", "process_open_fds"} <= names
