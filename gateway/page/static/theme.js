"use strict";
// Loaded before anything is drawn: the theme that was chosen in this browser, else the system's.
{
  const chosen = localStorage.getItem("theme");
  if (chosen === "dark" || chosen === "light") document.documentElement.dataset.theme = chosen;
}
