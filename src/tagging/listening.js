// The player's position runs through the chart, and a click in the chart jumps there.
const audio = document.querySelector('audio');
const position = document.getElementById('position');
const now = document.getElementById('now');
const seconds = Number(position.dataset.seconds);
const windows = [...document.querySelectorAll('button[data-start]')];

// Show what was heard at a time: the row of the last window that began by then.
function tell(time) {
  const its = windows.findLast(button => Number(button.dataset.start) <= time) ?? windows[0];
  now.textContent = its.textContent + '  ' + its.closest('tr').lastElementChild.textContent;
}

function show() {
  position.style.left = 100 * Math.min(1, audio.currentTime / seconds) + '%';
  tell(audio.currentTime);
}

function follow() {
  show();
  if (!audio.paused) requestAnimationFrame(follow);
}

function jump(time) {
  audio.currentTime = time;
  audio.focus({preventScroll: true});  // so that Space plays from there
  show();
}

for (const picture of document.querySelectorAll('.over-time')) {
  const timeAt = event => {
    const box = picture.getBoundingClientRect();
    return seconds * (event.clientX - box.left) / box.width;
  };
  picture.addEventListener('click', event => jump(timeAt(event)));
  picture.addEventListener('mousemove', event => tell(timeAt(event)));
  picture.addEventListener('mouseleave', show);
}
for (const button of windows) {
  button.addEventListener('click', () => jump(Number(button.dataset.start)));
}
audio.addEventListener('play', follow);
for (const name of ['seeking', 'timeupdate', 'loadedmetadata']) audio.addEventListener(name, show);
audio.addEventListener('error', () => {
  document.getElementById('sound').textContent =
      'This browser cannot play the sound: it does not know the format, or the file is not there.';
});
show();
