"""moto's S3 over HTTP, as a process of its own: `python bucket_server.py` prints its port.

Requests are answered one at a time, so that conditional writes are atomic, as S3's are and moto's
alone are not: it looks and writes in two steps.
"""

import logging
import threading

from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from werkzeug.serving import make_server


def main():
    logging.disable(logging.INFO)
    application, lock = DomainDispatcherApplication(create_backend_app), threading.Lock()

    def one_at_a_time(environment, start_response):
        with lock:
            return list(application(environment, start_response))

    server = make_server(
        "127.0.0.1", 0, one_at_a_time, threaded=True, request_handler=MotoRequestHandler
    )
    print(server.port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
