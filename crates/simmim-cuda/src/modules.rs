//! The kernels as PTX, made from `kernels/` by `cargo xtask ptx`.

macro_rules! modules {
    ($($name:literal),* $(,)?) => {
        /// Name and text of each module.
        pub(crate) const MODULES: &[(&str, &str)] = &[$(($name, include_str!(concat!("../ptx/", $name, ".ptx")))),*];
    };
}

modules!(
    "adamw",
    "add",
    "attention",
    "cast",
    "cosine_heads",
    "cross_entropy",
    "embed_rows",
    "gather_rows",
    "global_norm",
    "layer_norm",
    "linear",
    "linear_rounded",
    "mean_tokens",
    "moving_average",
    "partials",
    "patch_gather",
    "pixel_loss",
    "pointwise",
    "qkv_bias",
    "relative_bias",
    "residual",
    "window_attention",
    "window_normalize",
);
