"""Benchmarks: clients of the public surface. Each program's docstring says how to run it.

    scenarios           a load of the laboratory against a live server
    simulate            the same load under virtual time; sweeps; how well the two agree
    policies            the scheduling policies side by side, under virtual time
    control_plane       what everything round the model costs
    scheduler_step      what a step costs the scheduler
    fit_cost            a cost profile for the mock, from the step log of a real model
    serving             any OpenAI-style server under load, level by level
    accuracy            right answers to published questions; the same tokens as `transformers`
    latency             where each millisecond of a token goes, process by process
    startup             from the first spawn to the first token, process by process
    offline             real models through the offline API

What the first two share: `presets` (the scenarios), `experiment` (the command line), `summary`, `bounds`, `report` and
`plot` (the figures). Live runs are made of `server`, `server_figures`, `step_log`, `load`, `client` and
`http_connection`; simulated ones of `simulation`, `simulated_load`, `ring_model`, `virtual_time` and `overheads`,
which `calibrate` measures with `control_plane` and `ring_costs`. The programs
that measure any server share `targets` (which one), `client`, `events` and `connection_pool` (how it is asked),
`datasets`, `metrics_page`, `profiled` and `trace`.
"""
