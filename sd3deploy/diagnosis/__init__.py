"""Known failures, explained: from a log, a traceback or an error to what is wrong and what helps.

    logfile → record → matcher (knowledge, advice, installed) → finding          what has failed
    checks                                                                       what would fail, step by step

Importing this costs the standard library and `packaging`.
"""
