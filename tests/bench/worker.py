"""A process that does what its stdin says: python worker.py MODULE; ends with its stdin.

Each line in is JSON: call (a function of the module) and args. Each line out has a value or an error. Runs in the
environments of both sides; `pin` and `pid` are there in each.
"""
import importlib
import json
import os
import sys
import traceback

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def answer(module, command):
    try:
        return {'value': getattr(module, command['call'])(*command['args'])}
    except Exception:
        return {'error': traceback.format_exc()}


def main(name):
    sys.path[0] = ROOT  # not this directory: its names are common ones
    answers, sys.stdout = sys.stdout, sys.stderr  # what anybody prints must not mix with the answers
    module = importlib.import_module(name)
    for line in sys.stdin:
        answers.write(json.dumps(answer(module, json.loads(line))) + '\n')
        answers.flush()
    os._exit(0)  # whatever threads it has


if __name__ == '__main__':
    main(sys.argv[1])
