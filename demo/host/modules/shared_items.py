"""Lists behind dropdowns, computed when they are asked for."""

sdnq_quant_modes = ["int8", "uint8", "int6", "uint6", "uint5", "uint4", "uint3", "uint2", "float8_e4m3fn", "float8_e5m2", "int16", "uint16"]


def sd_te_items():
    import modules.model_te

    return ["Default", *modules.model_te.te_dict]


def refresh_te_list():
    import modules.model_te

    modules.model_te.refresh_te_list()


def sd_vae_items():
    import modules.sd_vae

    return ["Automatic", "Default", *modules.sd_vae.vae_dict]


def refresh_vae_list():
    import modules.sd_vae

    modules.sd_vae.refresh_vae_list()
