"""A server process with mutual TLS: its ports, and new certificates while it serves."""

import ssl
import urllib.request
from pathlib import Path

import trustme
from isogloss import Client

from tests.support.certificates import HOST, ServerFiles, issue, options
from tests.support.server_process import ServerProcess


def test_a_server_with_mutual_tls_follows_its_files(tmp_path: Path) -> None:
    """Calls and metrics use TLS; a new certificate is loaded without a restart."""
    authority, next_authority, clients = trustme.CA(), trustme.CA(), trustme.CA()
    files = ServerFiles(tmp_path, issue(authority, HOST), clients)
    own = issue(clients, "worker")
    with ServerProcess(*files.flags, "--metrics-port", "0") as process:
        url = str(process.wait_for("serving metrics")["url"])
        with Client(process.address, options=options(authority, own)) as client:
            assert len(client.embed(["a"])) == 1
            files.write(issue(next_authority, HOST))
            process.wait_for("TLS files loaded again")
            assert len(client.embed(["a"])) == 1
        with Client(process.address, options=options(next_authority, own)) as client:
            assert len(client.embed(["a"])) == 1
        context = ssl.create_default_context(cadata=next_authority.cert_pem.bytes().decode())
        clients.issue_cert("scraper").configure_cert(context)
        with urllib.request.urlopen(url, context=context, timeout=30) as response:
            assert b'isogloss_tls_reloads_total{outcome="ok"} 1.0' in response.read()
