// A picture from the camera.

import { Problem } from "./service.js";

/**
 * Shows the camera in the page's dialog.
 * @returns {Promise<Blob | null>} The picture; null if the dialog was closed without one.
 * @throws {Problem} There is no camera, or the browser does not give it to this page.
 */
export async function takePicture() {
  if (!navigator.mediaDevices?.getUserMedia) {
    throw new Problem(
      0,
      "No camera on this address",
      "Browsers allow the camera only on https and localhost: open this page there. " +
        "On a phone, “Choose pictures” offers the camera too.",
    );
  }
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({
      video: { facingMode: "environment", width: { ideal: 1280 }, height: { ideal: 960 } },
    });
  } catch (error) {
    throw error.name === "NotAllowedError"
      ? new Problem(0, "No camera", "Access was denied: allow the camera for this page and try again.")
      : new Problem(0, "No camera", `It cannot be used (${error.name}): check that one is connected and free.`);
  }

  const dialog = document.getElementById("camera-dialog");
  const video = document.getElementById("video");
  try {
    video.srcObject = stream;
    dialog.showModal();
    return await new Promise((resolve) => {
      dialog.onclose = () => resolve(null);
      document.getElementById("camera-close").onclick = () => dialog.close();
      document.getElementById("shoot").onclick = () => {
        const canvas = document.createElement("canvas");
        [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
        if (canvas.width === 0) return; // no frame yet
        canvas.getContext("2d").drawImage(video, 0, 0);
        canvas.toBlob((blob) => { resolve(blob); dialog.close(); }, "image/jpeg", 0.92);
      };
    });
  } finally {
    for (const track of stream.getTracks()) track.stop();
    video.srcObject = null;
  }
}
