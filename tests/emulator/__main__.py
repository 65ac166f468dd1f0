"""`python -m emulator --port P --s3 URL --calls FILE`: serves until its process ends, on loopback alone."""

import argparse

from werkzeug.serving import run_simple

from . import accounts, call_log, endpoints, fleet, images, instances, load_balancing, security_groups, topics, traffic_mirroring, workflows
from .door import Door, RequestHandler
from .s3 import S3

CORRECTIONS = (accounts, endpoints, fleet, images, instances, load_balancing, security_groups, topics, traffic_mirroring, workflows)


def main() -> None:
    parser = argparse.ArgumentParser(prog="emulator", description=__doc__)
    parser.add_argument("--port", type=int, required=True, help="port of 127.0.0.1 to listen on")
    parser.add_argument("--s3", required=True, help="URL of the S3 that takes the requests for S3")
    parser.add_argument("--calls", required=True, help="file that gets a line of JSON for each call")
    arguments = parser.parse_args()
    door = Door(S3(arguments.s3), call_log.CallLog(arguments.calls))
    run_simple("127.0.0.1", arguments.port, door, threaded=True, request_handler=RequestHandler)


if __name__ == "__main__":
    main()
