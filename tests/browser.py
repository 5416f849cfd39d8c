"""Pages opened in a real headless Chromium."""

import html
import json
import re
import shutil
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chrome"))), None)
needs_browser = pytest.mark.skipif(
    BROWSER is None, reason="THE PAGE GOES UNOPENED: install chromium"
)


def opened(text, watcher, folder, *flags):
    """What a watcher finds on a page, all that the page fetched, and the browser's log.

    The page's policy lets no script into it, so it lies in a frame of the watcher's, a page
    with `{page}` in a srcdoc, which leaves what it finds as JSON in its body's data-found.
    """
    fetched = []

    class Server(BaseHTTPRequestHandler):
        def do_GET(self):  # noqa: N802
            fetched.append(self.path)
            self.send_response(200 if self.path == "/" else 404)
            self.end_headers()
            self.wfile.write(watcher.replace("{page}", html.escape(text)).encode())

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            ended = subprocess.run(
                [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
                 f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=9000", *flags,
                 "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1", "--dump-dom",
                 f"http://127.0.0.1:{server.server_port}/"],
                capture_output=True, text=True, timeout=180, check=True,
            )  # fmt: skip
        finally:
            server.shutdown()
            thread.join()
    found = re.search(r'data-found="([^"]*)"', ended.stdout)
    assert found, f"the page did not load: {ended.stderr[-2000:]}"
    return json.loads(html.unescape(found[1])), {*fetched} - {"/", "/favicon.ico"}, ended.stderr
