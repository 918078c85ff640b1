"""Builds the wheel from settings.ini, the one place where names, versions and requirements are written."""

from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
SETTINGS = ConfigParser(delimiters=["="])
SETTINGS.read(HERE / "settings.ini", encoding="utf-8")
CFG = SETTINGS["DEFAULT"]


def requirements(key: str) -> list[str]:
    return CFG.get(key, "").split("\n")[1:] if CFG.get(key, "").startswith("\n") else CFG.get(key, "").split()


DEMO = "data_samples/Task01_TumourBrains"
NOTEBOOKS, RAY = requirements("notebooks_requirements"), requirements("ray_requirements")
FORMATS = requirements("formats_requirements")

setup(
    name=CFG["lib_name"],
    version=CFG["version"],
    description=CFG["description"],
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author=CFG["author"],
    keywords=CFG["keywords"],
    license="Apache-2.0",
    license_files=["LICENSE"],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Medical Science Apps.",
    ],
    packages=[*find_packages(include=["ssl3d", "ssl3d.*"]), "ssl3d.demo_scans"],
    package_dir={"ssl3d.demo_scans": DEMO},  # the scans that `ssl3d demo` takes, with their notice
    package_data={
        "ssl3d": ["py.typed", "*.pyi", "games/*.js", "games/*.css"],
        "ssl3d.demo_scans": ["*.json", "*.txt", "*/*.nii.gz"],
    },
    include_package_data=False,
    python_requires=f">={CFG['min_python']}",
    install_requires=requirements("requirements"),
    extras_require={
        "notebooks": NOTEBOOKS,
        "ray": RAY,
        "watch": requirements("watch_requirements"),
        "formats": FORMATS,
        "hub": requirements("hub_requirements"),
        "bundle": requirements("bundle_requirements"),
        "itk": requirements("itk_requirements"),
        "nnunet": requirements("nnunet_requirements"),
        "dev": NOTEBOOKS + RAY + FORMATS + requirements("dev_requirements"),
    },
    options={"editable_wheel": {"mode": "compat"}},  # so that a clone's own folder name does not shadow the package
    entry_points={
        "console_scripts": ["ssl3d = ssl3d.cli:main"],
        "nbdev": [f"{CFG['lib_name']} = {CFG['lib_name']}._modidx:d"],
    },
)
