def preload(parser):
    parser.add_argument("--sd3-probe-flag", default=None)
