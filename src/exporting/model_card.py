"""The model card: a README.md that says on Hugging Face's hub what a model is.

It begins with fields for the hub's search (YAML) and continues with text for people. It says what
is known and leaves out the rest.
"""
import re
import shlex
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from audio.fbank import FRAME_SHIFT_MS
from exporting.run_record import MetricValues, RunRecord, read_run
from exporting.trained import TrainedModel
from models.published import AUDIOSET, timm_file
from training.options import RESUMABLE_OPTIONS

TASK = 'audio-classification'
METRIC_IDS = {'acc': 'accuracy', 'mAP': 'mean_average_precision', 'mAUC': 'roc_auc',
              'macro F1': 'f1'}  # our names -> those of the hub, as far as it has them
DATASET_ID = re.compile(r'[\w.-]+(/[\w.-]+)?')  # the hub takes no other names
# Options that the table of training does not show. Other sections show those in OF_MODEL. Those in
# RESUMABLE_OPTIONS, and save_model, do not change what is computed. The others may be paths, which
# may contain names of people.
OF_MODEL = ('model', 'model_size', 'n_class', 'fstride', 'tstride', 'num_mel_bins', 'audio_length',
            'dataset', 'dataset_mean', 'dataset_std', 'loss')
LEFT_OUT = (*RESUMABLE_OPTIONS, *OF_MODEL, 'data_train', 'data_val', 'data_eval', 'label_csv',
            'start', 'noise_dir', 'save_model')
VERSIONS = ('python', 'torch', 'timm', 'commit', 'changed since the commit')  # of environment.json
SCORE_NOTES = {
    'BCE': 'Scores are sigmoids: each class has a score from 0 to 1 of its own, and several '
           'classes may be heard at once. Older versions of transformers take softmax unless '
           '`function_to_apply` says sigmoid.',
    'CE': 'Scores are softmax: those of all classes add up to 1.'}


def write_card(trained: TrainedModel, name: str, license: str | None) -> str:
    """Return the card of a model as text.

    Args:
        name: of the model.
        license: an identifier of the hub, or None: then the card names none.
    """
    run = read_run(trained.path)
    parts = [introduction_section(trained, name), usage_section(trained, name),
             scores_section(run) if run else '', model_section(trained),
             training_section(run) if run else '', classes_section(trained)]
    body = '\n'.join(filter(None, parts))
    return f'---\n{card_data(trained, run, name, license).to_yaml()}\n---\n\n{body}'


def card_data(trained: TrainedModel, run: RunRecord | None, name: str, license: str | None
              ) -> ModelCardData:
    """Return the fields of the card that the hub reads."""
    results = evaluation_results(run) if run else []
    dataset = trained.dataset or ''
    return ModelCardData(
        license=license, library_name='transformers', pipeline_tag=TASK,
        tags=['audio', 'audio-spectrogram-transformer'], base_model=base_model(trained),
        datasets=[dataset] if DATASET_ID.fullmatch(dataset) else None,
        metrics=list(dict.fromkeys(result.metric_type for result in results)) or None,
        model_name=name if results else None, eval_results=results or None)


def base_model(trained: TrainedModel) -> str | None:
    """Return the id on the hub of the model that training started from, if it is known."""
    start = trained.description.get('start')
    if start == 'AudioSet':
        return AUDIOSET.hub_id
    if start == 'ImageNet':
        return timm_file(trained.model.config.backbone.timm_name).hub_id
    return None


def evaluation_results(run: RunRecord) -> list[EvalResult]:
    """Return the scores for which the hub has names."""
    dataset = run.settings['dataset']
    return [EvalResult(task_type=TASK, dataset_type=dataset, dataset_name=dataset,
                       dataset_split=split, metric_type=METRIC_IDS[name], metric_name=name,
                       metric_value=value)
            for split, values in (('validation', run.validation), ('test', run.test))
            for name, value in values.items() if name in METRIC_IDS]


def introduction_section(trained: TrainedModel, name: str) -> str:
    """Return a paragraph that says what the model is."""
    config, start = trained.model.config, trained.description.get('start')
    parameters = sum(value.numel() for value in trained.model.parameters()) / 1e6
    origin = f' on {as_markdown(trained.dataset)}' if trained.dataset else ''
    if start:
        origin += f', starting from {as_markdown(start)} weights'
    trained_on = f' It was trained{origin}.' if origin else ''
    return (f'# {as_markdown(name)}\n\n'
            f'An Audio Spectrogram Transformer ([paper](https://arxiv.org/abs/2104.01778)) of size '
            f'{config.model_size}, {parameters:.1f} M parameters. It classifies sounds: '
            f'{config.label_dim} classes.{trained_on}\n')


def usage_section(trained: TrainedModel, name: str) -> str:
    """Return the section that shows how to use the model."""
    seconds = trained.model.config.input_tdim * FRAME_SHIFT_MS / 1000
    loss = trained.description['loss']
    options = ", function_to_apply='sigmoid'" if loss == 'BCE' else ''
    return f"""## Use

```python
from transformers import pipeline

classify = pipeline('{TASK}', {name!r})  # a folder, or an id on Hugging Face
print(classify('recording.wav'{options}))  # reads files with the program ffmpeg
```

{SCORE_NOTES[loss]} The pipeline hears the first {seconds:g} s of a recording.

The feature extractor of transformers computes spectrograms with other code than the training. For
recordings of 16 kHz, the values differ by about 0.001 at most. Other rates are resampled by other
code, too, and the highest mel bins differ more.
"""


def classes_section(trained: TrainedModel) -> str:
    """Return the list of classes."""
    lines = [f'{i}. {as_markdown(name)}' for i, name in enumerate(trained.labels.names)]
    return '\n'.join(['## Classes', '', *lines, ''])


def model_section(trained: TrainedModel) -> str:
    """Return a table of the settings of the model and its input."""
    config, description = trained.model.config, trained.description
    values = {name: f'{description[name]}{", assumed" if name in description["assumed"] else ""}'
              for name in ('mean', 'std', 'loss')}
    return as_table('Model', {
        'size': config.model_size,
        'patches': f'16 x 16, strides {config.fstride} (frequency) x {config.tstride} (time)',
        'input': f'log mel spectrogram of 16 kHz mono: {config.input_tdim} frames of 10 ms x '
                 f'{config.input_fdim} mel bins',
        'mean of the spectrogram': values['mean'],
        'standard deviation': f'{values["std"]}; the model sees (x - mean) / (2 * deviation)',
        'loss': values['loss']})


def scores_section(run: RunRecord) -> str:
    """Return a table of the scores, or '' if there are none."""
    columns = {f'validation set, {run.model_label}': run.validation,
               f'test set, {run.model_label}': run.test}
    columns = {title: values for title, values in columns.items() if values}
    if not columns:
        return ''
    names = list(dict.fromkeys(name for values in columns.values() for name in values))
    rows = [[as_markdown(name), *(as_score(values, name) for values in columns.values())]
            for name in names]
    lines = [['metric', *columns], ['---'] * (1 + len(columns)), *rows]
    note = ('\nThe epoch was chosen by its score on the validation set, so its scores there are '
            'optimistic.\n' if run.is_best else '')
    return '## Scores\n\n' + '\n'.join(f'| {" | ".join(line)} |' for line in lines) + '\n' + note


def as_score(values: MetricValues, name: str) -> str:
    """Return the score of a name as text, '' if there is none."""
    return f'{values[name]:.4f}' if name in values else ''


def training_section(run: RunRecord) -> str:
    """Return the settings of training, the versions and the command."""
    values = {f'`--{name}`': without_folder(value)
              for name, value in run.settings.items() if name not in LEFT_OUT}
    values |= {name: run.environment[name] for name in VERSIONS if run.environment.get(name)}
    text = as_table('Training', values)
    if command := run.environment.get('command'):
        text += f'\n```bash\npython {without_folders(command)}\n```\n'
    return text


def without_folders(command: str) -> str:
    """Return a command line without the folders of absolute paths."""
    words = []
    for word in shlex.split(command):
        name, equals, value = word.rpartition('=')
        words.append(name + equals + without_folder(value))
    return shlex.join(words)


def without_folder(value: Any) -> Any:
    """Return the name of an absolute path, whose folders may name people; other values as is."""
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def as_table(title: str, values: dict[str, Any]) -> str:
    """Return a section with a table. Names are Markdown already, values are plain text."""
    rows = [f'| {name} | {as_markdown(value)} |' for name, value in values.items()]
    return '\n'.join([f'## {title}', '', '| setting | value |', '|---|---|', *rows, ''])


def as_markdown(value: Any) -> str:
    """Return a value as text on one line in which no character is taken for Markdown."""
    # Inside a word, _ is only itself.
    return re.sub(r'([\\`*\[\]<>|~#&]|\b_|_\b)', r'\\\1', ' '.join(str(value).split()))
