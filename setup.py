"""Packaging: the library, the model zoo, the configuration and the demo data."""

import re
from pathlib import Path
from shutil import rmtree

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
VERSION = re.search(
    r'^__version__ = "(.+)"$', (ROOT / "fuxictr_tf4ctr/__init__.py").read_text("utf-8"), re.M
)[1]

# Installed inside the package, so that every experiment runs from any directory.
RESOURCES = ("config/*/*.yaml", "data/demo/*.csv", "data/demo/LICENSE.md", "data/README.md")

# The site of the documentation
_DOCS = ["sphinx>=8,<10", "myst-parser>=4,<6", "furo>=2025.9"]
# fuxictr export: what torch.onnx.export works by, and what runs its result
_EXPORT = ["onnx>=1.20,<2", "onnxscript>=0.6,<1", "onnxruntime>=1.23.2,<2"]
# fuxictr tune --search tpe and random
_OPTUNA = "optuna>=5,<6"
# --engine ray
_RAY = "ray[train,tune]>=2.49,<3"
# table_sharding; later ones do not load beside the PyTorch of constraints.txt
_TORCHREC = ["torchrec>=1.8,<1.9", "fbgemm-gpu>=1.8,<1.9"]
# trackers: [tensorboard, mlflow, wandb]; a database in a file, MLflow's default, needs the others
_TENSORBOARD = "tensorboard>=2.19,<3"
_MLFLOW = ["mlflow-skinny>=3.1,<4", "sqlalchemy>=2,<3", "alembic>=1.13,<2"]
_WANDB = "wandb>=0.20,<1"


class BuildWithResources(build_py):
    """Build the packages, with configuration and demo data in ours, and what joins model zoos."""

    def run(self) -> None:
        if not self.editable_mode:
            # What an earlier build of the same clone left: its modules would come back to life.
            for package in ("fuxictr_tf4ctr", "model_zoo"):
                rmtree(Path(self.build_lib, package), ignore_errors=True)
        super().run()
        if self.editable_mode:
            return  # a clone has them beside the package
        for source in (path for pattern in RESOURCES for path in ROOT.glob(pattern)):
            target = Path(self.build_lib, "fuxictr_tf4ctr", source.relative_to(ROOT))
            self.mkpath(str(target.parent))
            self.copy_file(str(source), str(target))
        # Python reads it at its start: our twins are in FuxiCTR's model_zoo, wherever that is.
        Path(self.build_lib, "fuxictr_tf4ctr.pth").write_text("import fuxictr_tf4ctr_zoo\n")


setup(
    name="fuxictr-tf4ctr",
    version=VERSION,
    description="TF4CTR twins of CTR models for FuxiCTR: registry, command line, h5 data, training",
    long_description=(ROOT / "README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE", "data/demo/LICENSE.md"],
    python_requires=">=3.10",
    py_modules=["fuxictr_tf4ctr_zoo"],
    packages=find_packages(include=["fuxictr_tf4ctr*", "model_zoo*"]),
    # A plain layout makes an editable install a line in a .pth file.
    package_dir={"": "."},
    package_data={"": ["*.css", "*.js"]},
    cmdclass={"build_py": BuildWithResources},
    install_requires=[
        "fuxictr>=2.3.10,<2.4",
        "torch>=2.5,<3",
        # FuxiCTR 2.3.10 calls scan_csv(dtypes=…), which polars 2 no longer takes.
        "polars>=1.40,<2",
        "h5py>=3.10,<4",
        "numpy>=1.26,<3",
        "pyarrow>=15",
        "scikit-learn>=1.6",
        "pyyaml>=6.0.1,<7",
        "filelock>=3.12,<5",
        "tqdm>=4.66,<5",
    ],
    extras_require={
        "docs": _DOCS,
        "export": _EXPORT,
        "test": [
            "pytest>=8,<10",
            "pytest-xdist>=3.8,<4",
            "hypothesis>=6.100,<7",
            "ruff>=0.17,<0.18",
            _OPTUNA,
            _RAY,
            _TENSORBOARD,
            *_DOCS,
            *_EXPORT,
        ],
        "mlflow": _MLFLOW,
        "ray": [_RAY],
        "tensorboard": [_TENSORBOARD],
        "torchrec": _TORCHREC,
        "tune": [_OPTUNA],
        "wandb": [_WANDB],
    },
    entry_points={
        "console_scripts": [
            "fuxictr = fuxictr_tf4ctr.cli:main",
            "fuxictr-tf4ctr = fuxictr_tf4ctr.cli:main",
        ],
        # What takes the place of parts of the core, which never imports them
        "fuxictr_tf4ctr.engines": [
            "tables = fuxictr_tf4ctr.engines.torchrec.sharded_tables:ShardedTables"
        ],
    },
    classifiers=[
        "Intended Audience :: Science/Research",
        "Operating System :: OS Independent",
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
