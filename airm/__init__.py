"""AIRM: refinement of coarse masks at ultra-high resolution by adaptive implicit representation mapping.

After Zhao et al., "Leveraging Adaptive Implicit Representation Mapping for Ultra High-Resolution Image Segmentation":
a transformer encoder empowered by semantic affinity, and a mapping function, adapted to each sample, from pixel-wise
features to the mask at any resolution. The package is reserved for it; nothing is implemented yet.
"""
