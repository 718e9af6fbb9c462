from setuptools import find_packages, setup

# Detectron2 is a prerequisite that cannot be named here, because it is not on PyPI: README.md says how to get one.
REQUIREMENTS = [
    # 2.6: safe_globals takes objects under another name, which the checkpoint reader needs for numpy of any version.
    "torch>=2.6",
    "torchvision>=0.21",
    "numpy>=1.26",
    "opencv-python>=4.10",
    "Pillow>=10.0",
    "matplotlib>=3.8",
    "rich>=13.0",
    "tqdm>=4.60",
    # Evaluation; the boundary evaluation overrides a method of faster-coco-eval 1.8.
    "pycocotools>=2.0.7",
    "faster-coco-eval>=1.8",
    "lvis>=0.5.3",
    "cityscapesscripts>=2.2",
    # What Detectron2 itself needs at run time.
    "cloudpickle>=2.0",
    "fvcore>=0.1.5,<0.1.6",
    "hydra-core>=1.3",
    "iopath>=0.1.9",
    "omegaconf>=2.2,<2.4",
    "packaging",
    "PyYAML>=5.1",
    # 82 dropped pkg_resources, which Detectron2's model_zoo imports; 70.1 is the first to build wheels by itself.
    "setuptools>=70.1,<82",
    "tabulate>=0.8",
    "tensorboard>=2.10",
    "termcolor>=1.1",
    "yacs>=0.1.8",
]

EXPORT = ["onnx>=1.18", "onnxscript>=0.5", "onnxruntime>=1.22"]

setup(
    name="pixelmask",
    version="0.1.0",
    description="Pixel-accurate instance masks for Detectron2: PatchDCT, DCT-Mask and AIRM",
    license="Apache-2.0",
    packages=find_packages(include=["pixelmask*", "patchdct*", "airm*"]),
    package_data={package: ["py.typed"] for package in ("pixelmask", "patchdct", "airm")},
    python_requires=">=3.10",
    install_requires=REQUIREMENTS,
    extras_require={
        # t-SNE, for Fig. 7 of AIRM
        "figures": ["scikit-learn>=1.3"],
        # ONNX files: writing them, and running them
        "export": EXPORT,
        "test": ["pytest>=9.1", "pytest-xdist>=3.5", "scipy>=1.11", "scikit-learn>=1.3", "selenium>=4.20", *EXPORT],
        "dev": ["mypy>=1.10", "ruff>=0.6", "types-PyYAML", "types-tqdm"],
    },
)
