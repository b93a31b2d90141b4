"""Prints the documents of a YAML file as a JSON array."""

import json
import sys

import yaml

with open(sys.argv[1]) as file:
    print(json.dumps(list(yaml.safe_load_all(file))))
