"""The tables that ``difftilt bench`` prints."""

from difftilt.benches.base import Table
from difftilt.benches.control import bandits, control
from difftilt.benches.exact import controls, exact, labels
from difftilt.benches.images import images
from difftilt.benches.text import infill
from difftilt.benches.text_to_image import text_to_image

TABLES = {
    "exact": Table(exact, "every method on problems with a known answer"),
    "control": Table(control, "offline control: methods on one behaviour and critic, played"),
    "controls": Table(controls, "CTRL's task: two controls learned apart, used together"),
    "bandits": Table(bandits, "offline control with the answer: many states, every β at once"),
    "labels": Table(labels, "CEP's labels: what each kind learns of a rare reward"),
    "infill": Table(infill, "the text table: the missing sentence of held-out stories"),
    "images": Table(images, "the vision table: classes of garments beside rejection truth"),
    "text_to_image": Table(
        text_to_image, "the text-to-image table: prompts that a prior never saw"
    ),
}
