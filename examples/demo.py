"""Starts a server with the bundled model, and shows nine languages meeting in one vector space, over real gRPC.

Exits 1 where a translation is not nearer to its original than to every unrelated sentence.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from isogloss import Client, Embeddings
from isogloss.cli.render import heat_map, neighbors_table

START_LIMIT_S = 60.0
LANGUAGES = ("Arabic", "Chinese", "English", "French", "German", "Hindi", "Italian", "Portuguese", "Spanish")
ENGLISH = LANGUAGES.index("English")

# What is said, in the order of LANGUAGES.
SAID = (
    (
        "صباح الخير",
        "早上好",
        "Good morning",
        "Bonjour",
        "Guten Morgen",
        "सुप्रभात",
        "Buongiorno",
        "Bom dia",
        "Buenos días",
    ),
    (
        "أين محطة القطار؟",
        "火车站在哪里？",
        "Where is the train station?",
        "Où est la gare ?",
        "Wo ist der Bahnhof?",
        "रेलवे स्टेशन कहाँ है?",
        "Dov'è la stazione ferroviaria?",
        "Onde fica a estação de trem?",
        "¿Dónde está la estación de tren?",
    ),
    (
        "أنا جائع جدا",
        "我很饿",
        "I am very hungry",
        "J'ai très faim",
        "Ich habe großen Hunger",
        "मुझे बहुत भूख लगी है",
        "Ho molta fame",
        "Estou com muita fome",
        "Tengo mucha hambre",
    ),
    (
        "سوف تمطر غدا",
        "明天会下雨",
        "It will rain tomorrow",
        "Il va pleuvoir demain",
        "Morgen wird es regnen",
        "कल बारिश होगी",
        "Domani pioverà",
        "Vai chover amanhã",
        "Mañana va a llover",
    ),
)
QUESTIONS = (
    "How do I get to the railway station?",
    "Ich möchte etwas essen",
    "Will we need an umbrella for the rain?",
)


@contextmanager
def running_server() -> Iterator[str]:
    """Runs a server on a free port; gives its address."""
    with tempfile.TemporaryDirectory() as folder:
        port_file, log_file = Path(folder) / "port", Path(folder) / "log"
        command = [sys.executable, "-m", "isogloss_server", "serve", "--port", "0", "--port-file", str(port_file)]
        with log_file.open("w") as log:
            process = subprocess.Popen(command, stderr=log)
        try:
            give_up_s = time.monotonic() + START_LIMIT_S
            while not port_file.exists():
                if process.poll() is not None or time.monotonic() > give_up_s:
                    raise SystemExit(f"the server did not start:\n{log_file.read_text()}")
                time.sleep(0.02)
            yield f"127.0.0.1:{port_file.read_text().strip()}"
        finally:
            process.terminate()
            process.wait()


def strayed(client: Client, everything: Embeddings) -> list[str]:
    """Returns the sentences that lie nearer to an unrelated original than to their own."""
    originals = [said[ENGLISH] for said in SAID]
    scores = client.similarity(everything, originals).values
    own = [meaning for meaning in range(len(SAID)) for _ in LANGUAGES]
    return [
        f"{LANGUAGES[row % len(LANGUAGES)]}: {SAID[own[row]][row % len(LANGUAGES)]}"
        for row, line in enumerate(scores)
        if any(line[other] >= line[own[row]] for other in range(len(SAID)) if other != own[row])
    ]


def main() -> int:
    """Runs the demonstration; returns the exit status."""
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    sentences = [sentence for said in SAID for sentence in said]
    started_s = time.monotonic()
    with running_server() as address, Client(address) as client:
        ready_s = time.monotonic()
        everything = client.embed(sentences)
        model = client.models()[0]
        print(f"{model.name} on {address}, {model.dimensions[0]} dimensions, space {everything.space_id}")
        print(f"{len(sentences)} sentences in {len(LANGUAGES)} languages: {', '.join(LANGUAGES)}\n")
        scores = client.similarity(everything, [said[ENGLISH] for said in SAID])
        print(heat_map(scores.values, sentences, [said[ENGLISH] for said in SAID], colour=colour))
        for question in QUESTIONS:
            print(f"Nearest to {question!r}:")
            print(neighbors_table(client.nearest(question, sentences, k=5), colour=colour))
        astray = strayed(client, everything)
        done_s = time.monotonic()
    print(f"The server was ready after {ready_s - started_s:.2f} s; all of the above took {done_s - ready_s:.3f} s.")
    for sentence in astray:
        print(f"Nearer to something unrelated than to its original: {sentence}", file=sys.stderr)
    if not astray:
        print("Every translation is nearer to its original than to every unrelated sentence.")
    return 1 if astray else 0


if __name__ == "__main__":
    sys.exit(main())
