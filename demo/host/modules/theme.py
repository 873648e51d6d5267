"""The languages of the page. "Auto" is decided by each browser, in the page: the server does not know it."""


def list_locales():
    names = ("English", "Croatian", "German", "Spanish", "French", "Italian", "Portuguese", "Chinese", "Japanese", "Korean", "Russian")
    codes = ("en", "hr", "de", "es", "fr", "it", "pt", "zh", "ja", "ko", "ru")
    return ["Auto", *(f"{code}: {name}" for code, name in zip(codes, names, strict=True))]
