# Parses OpenMetrics from stdin with the Prometheus project's own parser, and prints each family as a line of JSON.
import json
import sys

from prometheus_client.openmetrics.parser import text_string_to_metric_families

for family in text_string_to_metric_families(sys.stdin.read()):
    exemplar = lambda of: of and [of.labels, of.value, float(of.timestamp)]
    samples = [[sample.name, sample.labels, sample.value, exemplar(sample.exemplar)] for sample in family.samples]
    print(json.dumps({"name": family.name, "type": family.type, "unit": family.unit, "samples": samples}))
