"""How each benchmark is asked: one table.

`official` is the wording of the benchmark's own files or code, `llava` that of LLaVA 1.5's scripts,
`authors` that of ParGo's release. The first one of a benchmark is its default. What stands around
it (roles, `<Img>`) belongs to the model's processor. Wordings marked "from memory" were not
compared with a file of their source.
"""

from __future__ import annotations

from pargo_ds.evaluation.benchmark import Prompt

WORD = "{question}\nAnswer the question using a single word or phrase."
LETTER = (
    "{hint}{question}\n{options}\nAnswer with the option's letter from the given choices directly."
)
AS_ASKED = LETTER.replace("\n{options}", "")
LLAVA = "LLaVA 1.5, scripts/v1_5/eval"

PROMPTS: dict[str, dict[str, Prompt]] = {
    "scenes": {"official": Prompt(max_new_tokens=10, source="as trained by the demo")},
    "mme": {
        "official": Prompt(source="the questions end in: Please answer yes or no."),
        "llava": Prompt(template=WORD, without=" Please answer yes or no.", source=LLAVA),
        "authors": Prompt(
            template="{question}\nAnswer the question using a single word(Yes or No)",
            max_new_tokens=100,
            beams=4,
            source="bytedance/ParGo, eval/",
        ),
    },
    "pope": {
        "official": Prompt(max_new_tokens=32, source="the question alone"),
        "llava": Prompt(template=WORD, source=LLAVA),
    },
    "mmbench": {
        "llava": Prompt(template=LETTER, source="LLaVA, model_vqa_mmbench.py"),
        "official": Prompt(
            template="{hint}Question: {question}\nOptions:\n{options}\n"
            "Please select the correct answer from the options above. \n",
            hint="Hint: {hint}\n",
            max_new_tokens=64,
            source="VLMEvalKit, image_mcq.py (from memory)",
        ),
    },
    "seed": {
        "official": Prompt(likelihood=True, source="SEED-Bench-2, model/llava_v2_interface.py"),
        "llava": Prompt(template=LETTER, source=LLAVA),
    },
    "gqa": {"llava": Prompt(template=WORD, source=LLAVA)},
    "vqav2": {"llava": Prompt(template=WORD, source=LLAVA)},
    "textvqa": {
        "official": Prompt(template=WORD, source="the question and LLaVA's sentence"),
        "llava": Prompt(
            template=WORD.replace("\n", "\n{hint}"),
            hint="Reference OCR token: {hint}\n",
            source=LLAVA + ", with OCR tokens",
        ),
    },
    "refcoco": {
        "llava": Prompt(
            template="Please provide the bounding box coordinate of the region this sentence "
            "describes: {question}",
            max_new_tokens=48,
            source="LLaVA 1.5, its training data",
        ),
    },
    "scienceqa": {
        "llava": Prompt(template=LETTER, hint="Context: {hint}\n", source="LLaVA, CQM-A"),
    },
    "hallusion": {
        "official": Prompt(max_new_tokens=64, source="the question alone"),
        "llava": Prompt(template="{question}\nPlease answer yes or no.", source="VLMEvalKit"),
    },
    "mmvp": {
        "official": Prompt(
            template="{question} {hint}", hint="{hint}", max_new_tokens=64,
            source="MMVP, evaluate_mllm.py",
        ),
        "llava": Prompt(
            template="{question} {hint}\nAnswer with the option's letter from the given choices "
            "directly.",
            hint="{hint}",
            source="the letter's sentence of LLaVA",
        ),
    },
    "vstar": {"official": Prompt(likelihood=True, source="V*, vstar_bench_eval.py")},
    "cvbench": {"official": Prompt(template=AS_ASKED, source="Cambrian; the column prompt")},
    "realworldqa": {"official": Prompt(source="the questions say how to answer")},
    "countbench": {"llava": Prompt(template=WORD, source="no official one; LLaVA's sentence")},
    "blink": {"official": Prompt(max_new_tokens=64, source="the column prompt")},
    "mmvet": {"official": Prompt(max_new_tokens=512, source="the question alone")},
    "mmstar": {"official": Prompt(template=AS_ASKED, source="LLaVA's sentence")},
}  # fmt: skip
