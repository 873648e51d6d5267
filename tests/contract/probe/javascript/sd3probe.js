window.sd3probe = { globals: ['gradioApp', 'onUiLoaded', 'onUiReady', 'onUiUpdate', 'onOptionsChanged', 'authFetch', 'opts', 'api'].filter((name) => name in window) };
