"""What tenants may ask for: the platform team's lists, and the rules that hold a spec against them. Pure.

`rules` has one rule for each field, twice: in Python for the operator and in CEL for the API server. `policy` writes
the CEL ones as the file from which the chart makes its ValidatingAdmissionPolicy.
"""
